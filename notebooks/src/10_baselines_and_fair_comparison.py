# %% [markdown]
# # 10 · Baselines and fair comparison
#
# Every restoration paper ends in a table, and in the last row of it the new method is the best. Which of these rows may be compared
# with each other? What would the table look like if somebody had cheated, or had only been careless? In this notebook you compare
# methods live, and then you cheat: you raise every score that the papers use, without restoring anything. Afterwards you know what a
# number must carry with it before it means something.
#
# **After this notebook you can**
# - say which rows a table needs before its last row means anything, and which test people a method may have seen before,
# - name the protocol behind a PSNR, an SSIM, a Deg and an LPIPS, and say by how much the choice moves them,
# - raise PSNR by blurring, a quality score by sharpening, and identity by pasting or by invisible noise, and find each of these tricks out,
# - put an interval around a difference, say how many people it needs, and what testing twenty methods at once does to it,
# - say what leaving out hard pictures does to a mean, and what few pictures do to FID,
# - work through a checklist before you believe a table.
#
# **You need** notebook 00 (IDS, pairing) and notebook 01 (PSNR, embedders). Nothing here depends on how the methods work.

# %% tags=["parameters"]
profile = "toy"  # "paper" takes the published ReF-LDM; on drawn faces, for which it was not made
seed = 0  # every random number below follows from it
preset = "toy-ldbfr-severe"  # how pictures are ruined
people = 24  # unseen people
references = 4  # photos of each
samples = 3  # restorations of one ruined picture that are averaged
heroes = [3, 10]  # the people who are shown

# %%
import math

import pandas as pd
import torch

import refbfr_core
from refbfr_core import metrics
from refbfr_core import notebook as nb
from refbfr_core.benchmark import published, published_value
from refbfr_core.benchmark.cases import make_cases
from refbfr_core.benchmark.tables import SYSTEMS, TableReport
from refbfr_core.benchmark.tables.significance import standings
from refbfr_core.errors import RefbfrError
from refbfr_core.faces import ToyFaces
from refbfr_core.faces.training_overlaps import training_overlaps
from refbfr_core.images import from_network, to_network, to_uint8
from refbfr_core.metrics import Moments, paired_interval, set_distance
from refbfr_core.metrics.textures import load_textures
from refbfr_core.notebook import fairness, fooling
from refbfr_core.notebook.diffmac_figures import decided, spread_text
from refbfr_core.notebook.pdgrad_figures import ends
from refbfr_core.notebook.table_figures import plane_alt, plane_figure
from refbfr_core.weights import load_network

# %%
book = nb.start("10_baselines_and_fair_comparison", profile=profile, seed=seed)

# %% [markdown]
# ## 1 · The rows of a table
#
# A **baseline** is what the new method has to beat. Two of them cost nothing, and tables often lack them:
#
# - the **input** itself. A method that scores below it has done harm,
# - a **plain regression network**, trained to predict the clean picture and nothing else. What it can do needs no diffusion, no
#   codebook and no reference photo.
#
# We ruin pictures of unseen drawn people severely and restore them in four ways: not at all; by a small regression network (*coarse*);
# by ReF-LDM without photos (*LDM*, the paper's name for it); and by ReF-LDM with photos of the person.

# %%
device = book.device
pipe = refbfr_core.load_pipeline("refldm", profile=profile, device=str(device))
pipe.set_progress_bar_config(disable=True)
coarse_network, judge, second_judge, features = (load_network(name, device=device) for name in ("coarse", "judge", "guide", "perceptual"))
cases = make_cases(range(people), people, preset=preset, references=references, seed=seed, split="test", resolution=pipe.resolution)
truth, photo = cases.truth, cases.right[:, 0].contiguous()
with torch.no_grad():
    coarse = from_network(coarse_network.restore(to_network(cases.lq.to(device)))).cpu()
unaided = torch.stack([pipe(cases.lq.to(device), seed=[s + 7000 * k for s in cases.seeds]).images.cpu() for k in range(samples)])
restored = pipe(cases.lq.to(device), cases.right.to(device), seed=cases.seeds).images.cpu()
methods = {"Input": cases.lq, "coarse": coarse, "LDM": unaided[0], "ReF-LDM": restored}

# %%
figure = nb.image_grid([[*(x[i] for x in methods.values()), truth[i], photo[i]] for i in heroes], column_labels=[*methods, "truth", "a photo"], cell=1.28)
book.save(figure, "10_four_rows", kind="jpg", max_bytes=30_000, people=heroes, preset=preset,
          alt="Two people: the ruined input, the coarse network's smooth face, ReF-LDM without and with photos, the truth, and one of the photos.")

# %% [markdown]
# Five scores, each with what it compares. *niqe-toy* and *lpips-toy* are stand-ins for NIQE and LPIPS that were fitted to drawn faces, so
# that this notebook needs no download; they compare with no printed number.

# %%
scores = {
    "psnr": lambda x: metrics.compute("psnr", x, truth),
    "ssim": lambda x: metrics.compute("ssim", x, truth),
    "lpips-toy": lambda x: metrics.compute("lpips-toy", x, truth, network=features),
    "ids": lambda x: metrics.compute("ids", x, truth, embedder=judge),
    "niqe-toy": lambda x: metrics.compute("niqe-toy", x),
}
better = {name: metrics.REGISTRY[name].direction for name in scores}
measured = {method: {name: score(x) for name, score in scores.items()} for method, x in methods.items()}
nb.table([{"method": method, **{f"{name} ({better[name]})": spread_text(values, 3 if name in ("ssim", "ids", "lpips-toy") else 2) for name, values in own.items()}} for method, own in measured.items()],
         caption=f"{people} severely ruined people, means with 95 % intervals over people; in brackets what is better")

# %%
winners = {name: (max if better[name] == "higher" else min)(measured, key=lambda method: float(measured[method][name].mean())) for name in scores}
for name, winner in winners.items():
    print(f"best mean {name}: {winner}")

# %% [markdown]
# Who is best depends on the score, and the plain regression network wins where pixels are compared. Without its row one would
# think a good PSNR was an achievement of the diffusion. The printed tables have the row *Input* only in one of the four papers. Look how
# near to it the field is:

# %%
diffmac = published("DiffMAC")
first_table = diffmac[(diffmac.table == "Table 1") & (diffmac.metric == "PSNR") & diffmac.value.lt(math.inf)].set_index("method").value
below = sorted(name for name, value in first_table.items() if value < first_table["Input"])
print(f"DiffMAC, Table 1, PSNR on CelebA-Test: Input {first_table['Input']:.2f} dB; {len(below)} of {len(first_table) - 1} methods are below it: {', '.join(below)}")

# %% [markdown]
# ### Whose rows, and which version
#
# The systems of the four papers' tables, and how each comes into a table here. *Runs from its authors' file* means that their weights are
# read through spandrel; *scored from a folder* means that you run their code and hand in the pictures.

# %%
where = {"pipeline": "runs here", "file": "authors' file", "folder": "folder of results"}
nb.table([{"system": e.name, "references": e.references, "here": f"{where[e.run]}{' (drawn faces too)' if e.toy else ''}", "licence": e.licence, "know before comparing": e.note or e.reason or "–"}
          for e in SYSTEMS.values()], caption=f"{len(SYSTEMS)} systems; 'takes' and 'needs' say what happens to reference photos")

# %% [markdown]
# Read the last column: several papers compare with "VQFR" or "GFPGAN" and do not say which of their released versions. Such a
# row can be printed, but not measured again with certainty.
#
# Worse than an unknown version is a **leak**: the test people were in the training set. FFHQ-Ref is made of FFHQ, which nearly every
# face restorer was trained on.

# %%
leaks = training_overlaps("ffhq-ref")
nb.table([{"trained before": ", ".join(leak.systems) or "any network", "on": leak.trained_on, "source": leak.source} for leak in leaks],
         caption="What is known to have been trained on the photographs that the test set FFHQ-Ref was taken from")

# %% [markdown]
# That makes the printed rows of the *others* too good, so that ReF-LDM wins in spite of it; but it also means that those numbers say nothing
# about new people. On the drawn faces there is no such doubt: test people come from a split of their own, which no network was
# trained on.
#
# ## 2 · The same name, another number
#
# $$\mathrm{PSNR} = 10\log_{10}\frac{L^2}{\frac1N\sum_i (x_i - y_i)^2}$$
#
# What is $L$, what is $N$, and what are the $x_i$: red, green and blue, or only the brightness? Of float pictures or of saved files? Is the
# mean taken over the PSNRs of pictures, or over their squared errors? All of these can be found in published code. One restoration,
# eight numbers, all called "PSNR":

# %%
def luma_video(x):  # the luma of BT.601, as MATLAB's rgb2ycbcr: 16 to 235 of 255
    return (65.481 * x[:, :1] + 128.553 * x[:, 1:2] + 24.966 * x[:, 2:] + 16) / 255


def decibel(x, y):
    return -10 * torch.log10((x.double() - y.double()).square().flatten(1).mean(1))


def jpeg(x, quality):
    import cv2

    saved = [cv2.imdecode(cv2.imencode(".jpg", p[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1)[..., ::-1] for p in to_uint8(x).numpy()]
    return torch.stack([torch.from_numpy(p.copy()) for p in saved]).permute(0, 3, 1, 2) / 255


# %%
box = (slice(None), slice(None), slice(pipe.resolution // 4, -pipe.resolution // 8), slice(pipe.resolution // 4, -pipe.resolution // 4))
protocols = {
    "RGB, mean of the pictures' PSNR (this workbook)": lambda x: scores["psnr"](x),
    "brightness only (Y of YIQ)": lambda x: metrics.compute("psnr-y", x, truth),
    "brightness only (Y of video, 16 to 235)": lambda x: decibel(luma_video(x), luma_video(truth)),
    "RGB, one squared error over all pictures": lambda x: decibel(x.flatten()[None], truth.flatten()[None]).expand(people),
    "RGB, saved with 8 bits": lambda x: decibel(to_uint8(x) / 255.0, to_uint8(truth) / 255.0),
    "RGB, saved as JPEG, quality 95": lambda x: decibel(jpeg(x, 95), truth),
    "RGB, saved as JPEG, quality 50": lambda x: decibel(jpeg(x, 50), truth),
    "RGB, box around the face only": lambda x: decibel(x[box].contiguous(), truth[box].contiguous()),
}
found = {name: {method: how(methods[method]) for method in ("LDM", "ReF-LDM")} for name, how in protocols.items()}
plain = float(found["RGB, mean of the pictures' PSNR (this workbook)"]["ReF-LDM"].mean())
gains = {name: float((own["ReF-LDM"] - own["LDM"]).mean()) for name, own in found.items()}
nb.table([{"protocol": name, "ReF-LDM, dB": f"{float(own['ReF-LDM'].mean()):.2f}", "minus the first": f"{float(own['ReF-LDM'].mean()) - plain:+.2f}", "ReF-LDM − LDM, dB": f"{gains[name]:+.2f}"} for name, own in found.items()],
         caption="One set of pictures under eight protocols: the number, what the protocol alone changed, and what the photos bring under it")

# %%
widest = max(abs(float(own["ReF-LDM"].mean()) - plain) for own in found.values())
print(f"choosing a protocol moves the number by up to {widest:.2f} dB; the difference between the two methods is {gains[next(iter(gains))]:.2f} dB")

# %% [markdown]
# Within one protocol the comparison hardly changes; *between* protocols it is worthless. That is behind most threads in which somebody
# misses a paper's number by a few decibels. The same happens under other names:

# %%
big = {name: torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear") for name, x in {"ReF-LDM": restored, "truth": truth}.items()}
leaked = torch.cat([truth[:4], restored[4:]])  # a method that has learnt four test pictures by heart
angle = metrics.compute("deg", leaked, truth, embedder=judge)
pairs = [
    ("SSIM", "RGB", "brightness only", scores["ssim"](restored).mean(), metrics.compute("ssim-y", restored, truth).mean()),
    ("LPIPS (toy)", "at 128 px", "the same pictures enlarged to 256 px", scores["lpips-toy"](restored).mean(), metrics.compute("lpips-toy", big["ReF-LDM"], big["truth"], network=features).mean()),
    ("IDS", "the judge", "another embedder", scores["ids"](restored).mean(), metrics.compute("ids", restored, truth, embedder=second_judge).mean()),
    ("Deg of a leak", "every pair counts", "pairs under 1 degree left out (VQFR's script)", metrics.mean_deg(angle).value, metrics.mean_deg(angle, "vqfr").value),
]
nb.table([{"name": name, "one protocol": a, "another": b, "gives": f"{float(x):.3f}", "and": f"{float(y):.3f}"} for name, a, b, x, y in pairs],
         caption=f"Restorations of {people} people by ReF-LDM; in the last row four of them were replaced by the truth itself")

# %% [markdown]
# LPIPS alone has three published trunks (VGG, AlexNet, SqueezeNet), whose numbers differ by more than methods do; the papers at hand do not all
# name theirs. `metrics.describe` says what a number here is made of, and every table carries it:

# %%
for name in ("lpips", "lpips-alex", "lpips-toy"):
    print(metrics.describe(name))

# %% [markdown]
# ### Mistakes that look like protocols
#
# Networks work in [-1, 1], files hold 0 to 255, OpenCV reads blue before red. A mistake here gives no error in most code, only other
# numbers. Every public door of this package checks what it can:

# %%
def attempt(pictures, target=truth):
    try:
        return f"accepted: PSNR {float(metrics.compute('psnr', pictures, target).mean()):.2f} dB, IDS {float(metrics.compute('ids', pictures, target, embedder=judge).mean()):.2f}"
    except RefbfrError as error:
        return f"refused: …{str(error).split(':')[-1]}"


mistakes = {
    "none": restored, "in [-1, 1]": to_network(restored), "0 … 255": restored * 255, "bytes": to_uint8(restored), "channels last": restored.permute(0, 2, 3, 1),
    "blue before red": restored.flip(1), "[-1, 1] clamped to [0, 1]": to_network(restored).clamp(0, 1), "pictures shifted by one person": restored.roll(1, 0), "half a pixel aside": (restored + restored.roll(1, 3)) / 2,
}
nb.table([{"mistake": name, "what happens": attempt(x)} for name, x in mistakes.items()], caption="The same restorations, handed in wrongly")

# %%
swapped = {name: metrics.compute("colour-bias", x, truth) for name, x in (("as they are", restored), ("blue before red", restored.flip(1)))}
for name, values in swapped.items():
    print(f"colour bias, {name}: {spread_text(values, 1)} grey levels")

# %% [markdown]
# Ranges and shapes can be checked, and are. The lower half of the table shows what no check of one picture can see: swapped channels, clamping in
# the wrong place, wrong pairs, a shift (which is also a slight blur, and section 3 explains why that costs nothing). For those there are *sanity rows*: the truth against itself must give IDS 1, the input must give
# what the paper prints for it, and a colour bias must be small.
#
# ## 3 · How to fool a score
#
# Each of the following takes a finished restoration and a knob. At 0 nothing happens. We look at four scores at once, as differences to
# the untouched pictures of the same people, with 95 % intervals; where the green half is, the score says "better".
#
# ### PSNR: when in doubt, blur
#
# Suppose the ruined picture allows many faces $x$. Which answer $\hat x$ has the smallest expected squared error? Set the derivative of
# $\mathbb E\|x - \hat x\|^2$ to zero: $\hat x = \mathbb E[x]$, the *mean* of all faces it could be. Nobody looks like this mean, and it is blurred. A method that
# instead draws one honest sample of the possible faces pays twice: with the truth and the sample both spread by
# the variance $V$ around the mean, and independent,
#
# $$\mathbb E\|x - \hat x\|^2 = V\Big(1 + \frac1K\Big)\quad\text{for the mean of } K \text{ samples}$$
#
# So one sample lies $10\log_{10} 2 = 3$ dB below the mean of all. We have several samples of ReF-LDM without photos:

# %%
averaged = fooling.running_means(unaided)
by_count = [scores["psnr"](x) for x in averaged]
expected = [10 * math.log10(2 / (1 + 1 / k)) for k in range(1, samples + 1)]
nb.table([{"samples averaged": k + 1, "PSNR, dB": spread_text(own), "gain, dB": ends(paired_interval(own, by_count[0]), 2) if k else "–", "if samples were perfect": f"{expected[k]:+.2f}",
           "IDS": spread_text(scores["ids"](averaged[k])), "niqe-toy": spread_text(scores["niqe-toy"](averaged[k]))} for k, own in enumerate(by_count)],
         caption=f"Averages of samples of one method, {people} people; lower niqe-toy is better")

# %% [markdown]
# Averaging makes the pictures less real and the PSNR better, as the formula says; less than it says, because the samples of a small network
# are not perfect draws. This is Blau and Michaeli's trade-off, and the reason why the regression network won in section 1.
#
# One need not even have samples. A blur is enough:

# %%
watched = {name: scores[name] for name in ("psnr", "ids", "lpips-toy", "niqe-toy")}
blur = fooling.turned(lambda sigma: fooling.blurred(restored, sigma), [0, 0.5, 1, 2, 3, 4], watched)
sharpen = fooling.turned(lambda amount: fooling.sharpened(restored, amount), [0, 0.5, 1, 2, 3, 5], watched)
titles = {"psnr": "PSNR, dB", "ids": "IDS", "lpips-toy": "lpips-toy", "niqe-toy": "niqe-toy"}
figure = fooling.knob_figure({"blur, σ in pixels": blur, "sharpening, amount": sharpen}, titles, lower_is_better=("lpips-toy", "niqe-toy"))
book.save(figure, "10_blur_and_sharpen", max_bytes=40_000, people=people,
          alt="Differences of four scores over the width of a blur and the amount of sharpening: blur raises PSNR and costs niqe-toy, sharpening does the opposite.")

# %%
strongest = max(blur["psnr"], key=lambda sigma: float(blur["psnr"][sigma].mean()))
finest = min(sharpen["niqe-toy"], key=lambda amount: float(sharpen["niqe-toy"][amount].mean()))
blur_gain, sharp_gain = fooling.gains(blur["psnr"])[strongest], fooling.gains(sharpen["niqe-toy"])[finest]
photos_gain = paired_interval(measured["ReF-LDM"]["psnr"], measured["LDM"]["psnr"])
print(f"blur with σ = {strongest:g} px changes PSNR by {ends(blur_gain, 2)} dB; the reference photos change it by {ends(photos_gain, 2)} dB")
print(f"sharpening by {finest:g} changes niqe-toy by {ends(sharp_gain, 2)}, and PSNR by {ends(fooling.gains(sharpen['psnr'])[finest], 2)} dB")
print(f"and IDS: blur {ends(fooling.gains(blur['ids'])[strongest])}, sharpening {ends(fooling.gains(sharpen['ids'])[finest])}")

# %% [markdown]
# ### A quality score without a truth: sharpen
#
# NIQE looks at local statistics and compares them with those of clean pictures; no truth is needed. So it cannot know whether a detail is
# *right*. The restorations of a small network are a little soft, and an unsharp mask, which knows nothing about faces, brings the statistics nearer to those of
# clean pictures, up to a point: beyond it the score gets worse again. What NIQE cannot say is whether the added detail belongs there; for that one
# needs the truth (the score *detail* of this package compares with it and says by its sign whether there is too little or too much).

# %%
shown = {"untouched": restored, f"blurred, σ = {strongest:g}": fooling.blurred(restored, strongest), f"sharpened, {finest:g}": fooling.sharpened(restored, finest), "sharpened, 5": fooling.sharpened(restored, 5), f"mean of {samples}\n(no photos)": averaged[-1]}
figure = nb.image_grid(
    [[*(x[i] for x in shown.values()), truth[i]] for i in heroes], column_labels=[*shown, "truth"], cell=1.28,
    captions=[[f"{float(scores['psnr'](x)[i]):.1f} dB, {float(scores['niqe-toy'](x)[i]):.1f}" for x in shown.values()] + ["∞ dB, " + f"{float(scores['niqe-toy'](truth)[i]):.1f}"] for i in heroes],
)
book.save(figure, "10_fooled_pixels", kind="jpg", max_bytes=32_000, people=heroes,
          alt="Two restored faces untouched, blurred, sharpened a little and much, the mean of several samples, and the truth; below each PSNR and niqe-toy.")

# %% [markdown]
# Below each picture: PSNR, then niqe-toy. Move the knob; every frame carries its scores, averaged over all people:

# %%
ladder = [("blurred", s, fooling.blurred, blur) for s in (4, 3, 2, 1, 0.5)] + [("untouched", 0, fooling.blurred, blur)] + [("sharpened", a, fooling.sharpened, sharpen) for a in (0.5, 1, 2, 3, 5)]
frames = [torch.cat([how(restored[heroes], value)[0], how(restored[heroes], value)[1]], dim=2) for _, value, how, _ in ladder]
labels = [f"{name} {value:g}: {float(own['psnr'][value].mean()):.2f} dB, niqe-toy {float(own['niqe-toy'][value].mean()):.2f}" for name, value, _, own in ladder]
nb.frame_strip(frames, labels, width=384, still_frames=3, max_bytes=34_000,
               alt="Two restored faces from strongly blurred over untouched to strongly sharpened, each frame labelled with the mean PSNR and niqe-toy.")

# %% [markdown]
# **Try this** (with a running kernel). Find a setting of both knobs that beats the untouched picture in PSNR *and* in niqe-toy. Is there one?


# %%
def fool(sigma, amount):
    made = fooling.sharpened(fooling.blurred(restored, sigma), amount)
    values = ", ".join(f"{name} {float(own(made).mean()) - float(own(restored).mean()):+.3f}" for name, own in watched.items())
    return nb.show(nb.image_grid([[restored[heroes[0]], made[heroes[0]], truth[heroes[0]]]], column_labels=["untouched", "fooled", "truth"], title=values, cell=1.6), alt="A restoration, the same after both knobs, and the truth, with the changes of four scores above.")


nb.live(fool, sigma=[0, 0.5, 1, 2, 3, 4], amount=[0, 0.5, 1, 2, 3, 5])

# %% [markdown]
# ### Identity: copy
#
# IDS asks whether the judge sees the same person. The surest way to that is not to restore, but to hand in a *photo* of the person. The
# reference photos are such photos. So we lay the face of one over the restoration, more and more opaque; and in the end we hand in the
# whole photo, which shows another day, another pose and another shirt.

# %%
watched_twice = {**watched, "to the photo": lambda x: metrics.compute("ids", x, photo, embedder=judge)}
paste = fooling.turned(lambda share: fooling.pasted(unaided[0], photo, share), [0, 0.25, 0.5, 0.75, 1], watched_twice)
stranger = cases.wrong[:, 0].contiguous()
candidates = {"LDM": unaided[0], "ReF-LDM": restored, "LDM, photo's face pasted": fooling.pasted(unaided[0], photo, 0.75), "the whole photo": photo,
              "ReF-LDM, stranger's face pasted": fooling.pasted(restored, stranger, 0.75), "truth": truth}
likeness = {name: {"truth": scores["ids"](x), "photo": watched_twice["to the photo"](x), "stranger": metrics.compute("ids", x, stranger, embedder=judge), "psnr": scores["psnr"](x)} for name, x in candidates.items()}
nb.table([{"handed in": name, "IDS to the truth": spread_text(own["truth"], 3), "to the photo": spread_text(own["photo"], 3), "to a stranger": f"{float(own['stranger'].mean()):.3f}", "PSNR, dB": "∞" if name == "truth" else f"{float(own['psnr'].mean()):.2f}"}
          for name, own in likeness.items()], caption=f"Identity by the judge, {people} people; the photo is another picture of the same person")

# %%
over = paired_interval(likeness["the whole photo"]["truth"], likeness["ReF-LDM"]["truth"])
print(f"whole photo − ReF-LDM in IDS: {ends(over)}: " + decided(over, "a photo that nobody restored BEATS the method", "the method beats the photo", "they cannot be told apart"))
excess = {name: paired_interval(own["photo"], own["truth"]) for name, own in likeness.items() if name != "truth"}
for name, interval in excess.items():
    print(f"{name}: more like the photo than like the truth by {ends(interval)}: " + decided(interval, "copies", "does not copy", "open"))

# %% [markdown]
# The photo does not reach 1, because even two good photos of one person differ for the judge: truth and photo are as alike as the last
# row says. The second column is how to find a copier. Whoever restores *this* picture makes something that is more like the truth than like the photo; where it
# is the other way round, the method has taken from the photo what was not in the picture. PSNR and LPIPS notice too, because pose and light are
# wrong. And a wrong photo pasted in brings down IDS, which is why the wrong-reference arm belongs in every table.

# %%
figure = fooling.knob_figure({"opacity of the photo's face": paste}, {"ids": "IDS", "to the photo": "IDS to the photo", "psnr": "PSNR, dB", "niqe-toy": "niqe-toy"}, lower_is_better=("niqe-toy",))
book.save(figure, "10_paste", max_bytes=22_000, people=people,
          alt="Differences of IDS to the truth, IDS to the photo, PSNR and niqe-toy over the opacity of a pasted face: the first rises and falls again, the second rises, PSNR falls, niqe-toy improves.")

# %% [markdown]
# A pasted sharp face improves the quality score as well: three scores up, and nothing was restored.
#
# ### Identity: whisper to the judge
#
# The last trick is invisible. The embedder that scores is a network, and its gradient says how to change pixels so that it sees somebody. We
# take the *ruined input itself* and LDM's restoration, and let every value change by a few grey levels of 255, towards the embedding of the
# photos. Nobody knows the truth here; only the judge's weights and the photos are used.

# %%
photos = cases.right
levels = [0, 1, 4]  # most grey levels a value may change by
tuned = {name: {reach: fooling.tuned(x, photos, judge, reach, steps=6) for reach in levels} for name, x in (("Input", cases.lq), ("LDM", unaided[0]))}
watched_judges = {"ids": scores["ids"], "other": lambda x: metrics.compute("ids", x, truth, embedder=second_judge), "psnr": scores["psnr"]}
whispered = {name: fooling.turned(own.get, levels, watched_judges) for name, own in tuned.items()}
nb.table([{"picture": name, "may change by, grey levels": reach, "IDS, the judge": spread_text(own["ids"][reach], 3), "IDS, another embedder": spread_text(own["other"][reach], 3), "PSNR, dB": f"{float(own['psnr'][reach].mean()):.2f}"}
          for name, own in whispered.items() for reach in levels], caption=f"Pictures tuned to the judge, {people} people; ReF-LDM's IDS, honestly: {float(measured['ReF-LDM']['ids'].mean()):.3f}")

# %%
tuned_input = tuned["Input"][levels[-1]]
shown = {"Input": cases.lq, "tuned": tuned_input, "change × 20": (0.5 + 20 * (tuned_input - cases.lq)).clamp(0, 1), "LDM, photo's\nface pasted": candidates["LDM, photo's face pasted"], "ReF-LDM": restored, "truth": truth}
figure = nb.image_grid([[x[i] for x in shown.values()] for i in heroes], column_labels=list(shown), cell=1.28,
                       captions=[["" if "×" in name else f"IDS {float(scores['ids'](x)[i]):.2f}" for name, x in shown.items()] for i in heroes])
book.save(figure, "10_fooled_identity", kind="jpg", max_bytes=40_000, people=heroes, levels=levels[-1],
          alt="Two people: the ruined input, the same tuned to the judge and looking alike, the change enlarged, a restoration with a pasted photo, ReF-LDM, and the truth, each with its IDS.")

# %%
to_method = paired_interval(whispered["Input"]["ids"][levels[-1]], measured["ReF-LDM"]["ids"])
rise = {name: paired_interval(whispered["Input"][name][levels[-1]], whispered["Input"][name][0]) for name in ("ids", "other")}
print(f"the ruined picture, tuned by {levels[-1]} grey levels, minus ReF-LDM in IDS: {ends(to_method)}: " + decided(to_method, "unrestored pictures WIN", "they lose", "cannot be told apart"))
print(f"rise by tuning: {ends(rise['ids'])} for the judge that was tuned to, {ends(rise['other'])} for an embedder that was not")

# %% [markdown]
# Nobody would do that? Identity is often trained, or guided, by an embedder, and the score in the table is sometimes made by *the same*
# one. ReF-LDM's identity loss and its IDS share an ArcFace; PDGrad guides with one. Then a rise of the score need not be a rise in likeness. In this workbook the judge takes part in no
# training and in no guidance, and the guide is another network. The test for others: score with an embedder they did not use.
#
# ## 4 · From scores to claims
#
# ### Pair what can be paired
#
# Is ReF-LDM better in PSNR than LDM? Some faces are easy and some are hard, for every method alike. The variance of a difference is
#
# $$\mathrm{Var}(A - B) = \mathrm{Var}(A) + \mathrm{Var}(B) - 2\,\mathrm{Cov}(A, B)$$
#
# and the covariance is large, because the pictures are the same. A table that prints two means with their spreads throws it away.

# %%
a, b = measured["ReF-LDM"]["psnr"], measured["LDM"]["psnr"]
with_pairs, without = paired_interval(a, b), fairness.unpaired_interval(a, b)
figure = fairness.pairing_figure({"ReF-LDM": a, "LDM": b}, "PSNR, dB")
book.save(figure, "10_pairing", max_bytes=22_000, people=people,
          alt="Left, a line a person from the PSNR of LDM to that of ReF-LDM. Right, the interval of the mean difference with pairs, narrow, and without, wide.")

# %%
correlation = float(torch.corrcoef(torch.stack([a, b]))[0, 1])
width = {name: interval.high - interval.low for name, interval in (("with", with_pairs), ("without", without))}
print(f"correlation over people {correlation:.2f}; with pairs {ends(with_pairs, 2)} dB, without {ends(without, 2)} dB: {width['without'] / width['with']:.1f} times as wide")

# %% [markdown]
# ### How many people?
#
# A difference $\delta$ with standard deviation $s$ over people is seen in 80 of 100 studies if there are
#
# $$n \ge \Big(\frac{(1.96 + 0.84)\,s}{\delta}\Big)^2$$
#
# people. What counts are *people*; ten pictures of one person are not ten witnesses.

# %%
spreads, effects = {}, {}
for name in ("ids", "psnr"):
    one, other = measured["ReF-LDM"][name], measured["LDM"][name]
    spreads[name] = {"paired": float((one - other).std()), "unpaired": float((one.var() + other.var()).sqrt())}
    effects[name] = float((one - other).mean())
needed = {name: {way: fairness.people_needed(s, effects[name]) for way, s in spreads[name].items()} for name in spreads}
nb.table([{"score": name, "ReF-LDM − LDM": f"{effects[name]:+.3f}", "people needed, paired": needed[name]["paired"], "people needed, unpaired": needed[name]["unpaired"],
           f"share of {people // 2}-person studies that see it, paired": f"{fairness.detected(measured['ReF-LDM'][name] - measured['LDM'][name], people // 2, seed=seed):.0%}"} for name in spreads],
         caption="How many people it takes to show what was just measured, with 80 % power, if it is the truth")

# %%
figure = fairness.power_figure(spreads["psnr"], {f"PSNR, {effects['psnr'] * k:+.2f} dB": effects["psnr"] * k for k in (0.5, 1, 2)}, most=300)
book.save(figure, "10_power", max_bytes=22_000, effect=effects["psnr"],
          alt="Chance to tell a difference over the number of people, for half, once and twice the measured PSNR difference, paired and unpaired.")

# %% [markdown]
# ### Twenty methods, one winner
#
# With 95 % intervals, one of twenty comparisons between *equally good* methods is called different, on average. How often is at least one? Simulated:
# methods of exactly the same quality against one baseline.

# %%
alarms = {count: [fairness.false_alarms(count, people, corrected=corrected, seed=seed) for corrected in (False, True)] for count in (1, 5, 10, 20)}
nb.table([{"methods compared": count, "a false winner or loser": f"{plain_rate:.0%}", "if comparisons were independent": f"{1 - 0.95**count:.0%}", "with 0.05 divided by their number": f"{corrected:.0%}"} for count, (plain_rate, corrected) in alarms.items()],
         caption=f"2,000 simulated studies of {people} people; nothing differs in any of them")

# %% [markdown]
# The remedy in the last column is Bonferroni's; the tables of this package widen the intervals to the best method by it. (With so few people the Gaussian
# intervals are a little too narrow, which is why the column exceeds 5 %.)
#
# ### Failures count
#
# Some methods fail: no landmarks found, no face detected. ReF-LDM's table says so in a footnote for DMDNet:

# %%
missing = {name: (published_value("ReF-LDM", "results footnote", "DMDNet", "failed images", name), published_value("ReF-LDM", "results footnote", "dataset", "images", name)) for name in ("FFHQ-Ref-Severe", "FFHQ-Ref-Moderate", "CelebA-Test-Ref")}
for name, (failed, total) in missing.items():
    print(f"{name}: DMDNet's row is a mean over {total - failed:.0f} of {total:.0f} pictures, {failed / total:.0%} are left out")

# %% [markdown]
# The pictures without landmarks are the hard ones. What does leaving them out do? We let a method "fail" on the pictures whose input is
# hardest (lowest IDS of the input), and look at two scores:

# %%
shares = [0, 0.1, 0.25, 0.4, 0.5]
ease = measured["Input"]["ids"]
figure = fairness.dropping_figure({"IDS": {"LDM, failing": measured["LDM"]["ids"], "ReF-LDM, never": measured["ReF-LDM"]["ids"]}, "PSNR, dB": {"LDM, failing": measured["LDM"]["psnr"], "ReF-LDM, never": measured["ReF-LDM"]["psnr"]}}, ease, shares)
book.save(figure, "10_dropping", max_bytes=22_000, people=people,
          alt="Mean IDS and PSNR of LDM over the share of hardest people it leaves out, beside the flat line of ReF-LDM, which restores everybody; IDS rises.")

# %%
for name in ("ids", "psnr"):
    raised = {share: float(measured["LDM"][name][fairness.easiest(ease, share)].mean()) for share in shares}
    honest = float(measured["ReF-LDM"][name].mean())
    overtakes = [share for share in shares if raised[share] > honest]
    print(f"{name}: LDM {raised[0]:.3f}, without the hardest quarter {raised[0.25]:.3f}; ReF-LDM on everybody {honest:.3f}; LDM {'overtakes it once ' + f'{overtakes[0]:.0%} are left out' if overtakes else 'does not overtake it at any of these shares'}")

# %% [markdown]
# Hard for one score need not be hard for another: the pictures were chosen by identity, and identity is what gains.
#
# `standings`, which every table of this package goes through, does three things against it: it prints how many failed, it compares two methods on
# the pictures that *both* restored, and it never calls a method best that restored less than half. Here LDM fails on the hardest
# quarter:

# %%
def table_rows(method, system, references="none", failing=()):
    own = {name: values.tolist() for name, values in measured[method].items()}
    base = [{"dataset": "drawn-severe", "item": f"person-{i:03d}", "group": f"person-{i:03d}", "system": system, "references": references} for i in range(people)]
    return [each | ({"status": "failed", "reason": "no landmarks"} if i in failing else {"status": "ok", "reason": "", **{name: own[name][i] for name in own}}) for i, each in enumerate(base)]


hardest = set(range(people)) - set(fairness.easiest(ease, 0.25).tolist())
plain_rows = table_rows("LDM", "LDM") + table_rows("ReF-LDM", "ReF-LDM", "right")
holed = pd.DataFrame(table_rows("LDM", "LDM", failing=hardest) + table_rows("ReF-LDM", "ReF-LDM", "right"))
fair = {name: standings(rows, ["ids"]).set_index("system") for name, rows in (("nobody fails", pd.DataFrame(plain_rows)), ("LDM fails on the hardest quarter", holed))}
nb.table([{"": name, "LDM, mean IDS": f"{own.measured['LDM']:.3f}", "failed": int(own.failed["LDM"]), "ReF-LDM, mean": f"{own.measured['ReF-LDM']:.3f}", "LDM − ReF-LDM on common pictures": f"{own.to_best['LDM']:+.3f}", "verdict": own.verdict["LDM"]} for name, own in fair.items()],
         caption="A mean that rises by failing, and a difference that hardly moves")

# %% [markdown]
# ### FID and few pictures
#
# FID fits a Gaussian to the features of a *set* of pictures and measures how far it is from the Gaussian of clean ones. A covariance
# that is estimated from few pictures is wrong in a direction that always makes the distance larger. We take **clean** faces, so that the true distance is about
# zero, and count how it grows as the set shrinks. KID, the kernel distance, has no such bias, but it has a spread.

# %%
textures = load_textures(device)
faces = ToyFaces(pipe.resolution)
others = faces.identities(48, seed + 1, split="val")
clean = torch.empty(48, 3, pipe.resolution, pipe.resolution).copy_(faces.render(others, faces.views(others, 1, seed)).images[:, 0])
width_of_features = textures.projection.shape[1]
# The features were whitened by clean faces, whose moments are therefore these; with them as reference only the other set is small.
reference = Moments(torch.zeros(width_of_features, dtype=torch.float64), torch.eye(width_of_features, dtype=torch.float64), None)
sizes, draws = [6, 12, 24, 48], torch.Generator().manual_seed(seed)
picks = {n: [torch.randperm(48, generator=draws)[:n] for _ in range(1 if n == 48 else 5)] for n in sizes}
fid = {n: [set_distance("fid-toy", clean[pick], reference, "whitening set", extractor=textures, allow_small=True).value for pick in own] for n, own in picks.items()}
others_photos = cases.right.flatten(0, 1)
kid = {n: [set_distance("kid-toy", clean[pick], others_photos, "photos of the test people", extractor=textures, allow_small=True).value for pick in own] for n, own in picks.items()}

# %% [markdown]
# How much of it is bias? Numbers that *are* Gaussian, as many as there are features, have no true distance at all. With mean $m$ and
# covariance $S$ of $n$ of them, and the reference $\mathcal N(0, I)$, FID is $\|m\|^2 + \mathrm{tr}(S + I - 2S^{1/2})$ (dashed):

# %%
bias = {n: fairness.gaussian_bias(n, width_of_features, seed=seed) for n in sizes}
figure = fairness.size_figure({"fid-toy of clean faces": fid, "kid-toy of clean faces": kid}, bias)
book.save(figure, "10_small_sets", max_bytes=22_000, sizes=sizes,
          alt="FID of clean faces over the number of pictures falls from a large value towards zero like that of Gaussian numbers; KID scatters around a value near zero.")

# %%
few, many = 6, people
distances = {name: {n: set_distance("fid-toy", x[:n], reference, "whitening set", extractor=textures, allow_small=True).value for n in (few, many)} for name, x in {**methods, "truth": truth}.items()}
nb.table([{"pictures": name, **{f"fid-toy, n = {n}": f"{value:.1f}" for n, value in own.items()}} for name, own in distances.items()], caption="FID of the same methods from few and from more pictures, against one fixed reference")

# %%
for n in (few, many):
    order = sorted(distances, key=lambda name: distances[name][n])
    print(f"n = {n}: " + " < ".join(order) + ("" if order[0] == "truth" else f"; the truth itself is not first, {order[0]} is 'more real'"))
print(f"bias at n = {many} for clean pictures ({distances['truth'][many]:.1f}) against the difference ReF-LDM − LDM ({distances['ReF-LDM'][many] - distances['LDM'][many]:+.1f})")

# %% [markdown]
# So a FID may only be compared with a FID of as many pictures, against the same reference, with the same network and the same resizing; the column names of this package
# carry all four. The published tables show what a reference set does: DiffMAC's Table 1 measures against FFHQ, and the *true pictures* of CelebA-Test are
# further away than three methods:

# %%
fids = diffmac[(diffmac.table == "Table 1") & (diffmac.metric == "FID")].set_index("method").value
print(f"FID of the true pictures {fids['GT']:.2f}; below it: " + ", ".join(f"{name} {value:.2f}" for name, value in fids.sort_values().items() if value < fids["GT"]))

# %% [markdown]
# ## 5 · One picture of all trade-offs
#
# PSNR to the right (distortion: higher is better) and niqe-toy upwards (perception: lower is better), with intervals: the best corner is the
# lower right one. The tricks are on this plane, too:

# %%
tricks = {"ReF-LDM blurred": {name: own[strongest] for name, own in blur.items()}, "ReF-LDM sharpened": {name: own[finest] for name, own in sharpen.items()}, "LDM averaged": {name: score(averaged[-1]) for name, score in watched.items()}}
measured |= tricks
drawn_names = {"Input": "Input", "coarse": "Coarse network", "LDM": "LDM", **{name: name for name in tricks}}
plane_rows = [row for method, system in drawn_names.items() for row in table_rows(method, system)] + table_rows("ReF-LDM", "ReF-LDM", "right")
report = TableReport(pd.DataFrame(plane_rows))
frame = report.frame()
figure = plane_figure(frame, "psnr", "niqe-toy", {"drawn-severe": f"{people} drawn faces, severe"})
book.save(figure, "10_plane", max_bytes=32_000, people=people, alt=plane_alt(frame, "psnr", "niqe-toy"))

# %% [markdown]
# Blurring moves a method up and to the right, sharpening down and to the left: along the border between what is possible and what is not,
# for free. A better *method* moves the border towards the lower right. And neither axis knows who the person is; that needs a third one, which notebook 11 draws.
#
# ### Before you believe a table
#
# | ask | because |
# |---|---|
# | Are the input and a plain regression network among the rows? | otherwise nothing says what is hard |
# | Did any row see the test people, or the judge, in training? | leaks and tuned judges win |
# | Is every number's protocol stated: colour, range, size, file format, trunk, embedder? | decibels lie between protocols |
# | How many pictures, of how many people, and how many failed? | dropping hard ones raises means |
# | Are differences paired, with intervals, corrected for the number of rows? | a bold digit is no evidence |
# | Is there a distortion score *and* a perception score *and* an identity score? | each alone can be fooled by a line of code |
# | With references: are there arms with wrong references, none, and the photo itself? | otherwise copying looks like restoring |
# | Are FID or KID of the same $n$, reference set, network and resizing? | small sets are biased |
# | Which version of each baseline, with which settings? | names are not methods |
# | Can one see pictures that were chosen before they were restored? | cherries |
#
# ## Checks

# %%
untouched = [fooling.blurred(restored, 0), fooling.sharpened(restored, 0), fooling.pasted(restored, photo, 0), fooling.tuned(restored, photos, judge, 0)]
largest_change = float((tuned_input - cases.lq).abs().max()) * 255
variance_identity = a.var() + b.var() - 2 * torch.cov(torch.stack([a, b]))[0, 1]
refused = sum(attempt(x).startswith("refused") for name, x in mistakes.items() if name in ("in [-1, 1]", "0 … 255", "bytes", "channels last"))

# %%
nb.check(all(torch.equal(x, restored) for x in untouched), "every knob at 0 leaves the pictures alone, bit for bit")
nb.check(winners["psnr"] == "coarse" and winners["ids"] == "ReF-LDM", "the regression network has the best PSNR, the method with photos the best IDS")
nb.check_close(scores["psnr"](restored), decibel(restored, truth).float(), 1e-4, "PSNR by hand equals the package's")
nb.check_close(found["brightness only (Y of video, 16 to 235)"]["ReF-LDM"].mean() - found["brightness only (Y of YIQ)"]["ReF-LDM"].mean(), 20 * math.log10(255 / 219), 0.02, "video luma gives 20 log10(255/219) dB more")
nb.check(refused == 4, "wrong ranges, types and axes are refused, all four of them")
nb.check(blur_gain.above() and fooling.gains(blur["niqe-toy"])[strongest].above(), "blur raises PSNR and makes niqe-toy worse")
nb.check(sharp_gain.below() and fooling.gains(sharpen["psnr"])[finest].below(), "sharpening improves niqe-toy and costs PSNR")
nb.check_interval_above(by_count[-1] - by_count[0], 0.0, "the mean of samples has a higher PSNR than a sample")
nb.check_interval_above(paste["ids"][0.75] - paste["ids"][0], 0.0, "a pasted photo raises IDS over the restoration without photos")
nb.check_interval_above(whispered["Input"]["ids"][4] - whispered["Input"]["ids"][0], 0.1, "unseen noise raises the judge's IDS of the unrestored input")
nb.check(rise["ids"].mean > 2 * rise["other"].mean, "and that of another embedder by less than half as much")
nb.check_below(largest_change, 4.001, "no value changed by more than four grey levels")
nb.check_close(variance_identity, (a - b).var(), 1e-4, "Var(A − B) = Var(A) + Var(B) − 2 Cov(A, B)")
nb.check_above(width["without"], width["with"], "pairs make the interval narrower")
nb.check(fair["LDM fails on the hardest quarter"].measured["LDM"] > fair["nobody fails"].measured["LDM"], "failing on hard pictures raises the mean")
nb.check(alarms[20][0] > 0.3 > 0.15 > alarms[20][1], "among twenty equal methods a false winner is frequent, and rare after correction")
nb.check_above(sum(fid[6]) / len(fid[6]), 2 * fid[48][0], "FID of clean faces grows as the set shrinks")
nb.check(frame.best.sum() == frame.metric.nunique(), "the report names one best arm a score")

# %% [markdown]
# ## Exercises
#
# **1.** Find the copier. Write a function that takes restorations and says, with an interval, whether they are more like one of the photos than
# like the truth, by an embedder that was not tuned to. Try it on ReF-LDM, on the pasted faces, and on the whole photo.
#
# <details><summary>Solution</summary>
#
# ```python
# def copies(pictures):
#     ways = [cases.right[:, k].contiguous() for k in range(references)]
#     to_photos = torch.stack([metrics.compute("ids", pictures, each, embedder=second_judge) for each in ways]).max(0).values
#     return paired_interval(to_photos, metrics.compute("ids", pictures, truth, embedder=second_judge))
#
# for name, pictures in candidates.items():
#     print(name, copies(pictures))
# ```
#
# Two things matter: the *largest* likeness over the photos (a copier copies one), and an embedder that the method was not tuned to. The whole photo is
# found out; the pasted faces lie at the border, above both methods that only restored.
#
# </details>
#
# **2.** Combine the tricks: which simple post-processing of the coarse network's pictures beats ReF-LDM in as many of the five scores as possible?
#
# <details><summary>Solution</summary>
#
# ```python
# made = fooling.tuned(fooling.sharpened(coarse, 1.0), photos, judge, 4, steps=6)
# for name, score in scores.items():
#     print(name, paired_interval(score(made), measured["ReF-LDM"][name]), "better:", better[name])
# ```
#
# The judge is won at once. But sharpening, meant for niqe-toy, spends the coarse network's lead in the pixel scores, and the whispered noise costs
# niqe-toy in turn; lpips-toy, which compares features with the truth, is not to be had this way at all. Each score alone can be fooled, and every
# trick is paid for in another kind of score. That is why a table needs several kinds.
#
# </details>
#
# **3.** How many people would *you* need? Take your own difference of interest, say 0.05 dB, and find the number of people, paired and unpaired.
#
# <details><summary>Solution</summary>
#
# ```python
# for effect in (0.2, 0.1, 0.05):
#     print(effect, {way: fairness.people_needed(spread, effect) for way, spread in spreads["psnr"].items()})
# ```
#
# Half the effect needs four times the people. Many differences in printed tables are smaller than this, and none has an interval.
#
# </details>
#
# ## At full scale
#
# - On photographs the input row is a blur of 512 × 512 pixels, the plain regression network is a large one (CodeFormer with its quality dial on fidelity, or SwinIR), and the judge must be an ArcFace that no
#   compared method was trained with. `refbfr table` names the embedder in the column.
# - LPIPS, NIQE, MUSIQ and FID come with networks to fetch (`refbfr weights get`); their licences differ, see `refbfr weights list`.
# - FFHQ-Ref has 857 test pictures, CelebA-Test 3,000 of 2,048-dimensional features each: FID has full rank on neither of the small ones, and is biased on all.
# - A table of ten systems on three data sets is a few GPU hours; notebook 11 runs it so that it survives a kill.
#
# ## References
#
# - Y. Blau, T. Michaeli: *The Perception-Distortion Tradeoff*, CVPR 2018.
# - M. Bińkowski, D. J. Sutherland, M. Arbel, A. Gretton: *Demystifying MMD GANs*, ICLR 2018 (KID; the bias of FID).
# - M. J. Chong, D. Forsyth: *Effectively Unbiased FID and Inception Score and Where to Find Them*, CVPR 2020.
# - G. Parmar, R. Zhang, J.-Y. Zhu: *On Aliased Resizing and Surprising Subtleties in GAN Evaluation*, CVPR 2022.
# - A. Mittal, R. Soundararajan, A. C. Bovik: *Making a "Completely Blind" Image Quality Analyzer*, IEEE Signal Processing Letters, 2013 (NIQE).
# - C. Szegedy et al.: *Intriguing properties of neural networks*, ICLR 2014 (changes that only a network sees).
# - B. Efron: *Bootstrap Methods: Another Look at the Jackknife*, The Annals of Statistics, 1979.
# - C.-W. Hsiao et al.: *ReF-LDM*, NeurIPS 2024 (Table 7 and its footnote); N. Gao et al.: *DiffMAC*, arXiv 2403.10098 (Table 1).
