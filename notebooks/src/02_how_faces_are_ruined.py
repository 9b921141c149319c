# %% [markdown]
# # 02 · How faces are ruined
#
# A restorer is trained on pairs: a good face, and the same face ruined. Nobody has such pairs of photographs, so all
# papers in this workbook make them: they take a good picture and ruin it in a fixed order with random strengths. What a
# network later believes about bad pictures comes from this recipe. This notebook takes the recipe apart.
#
# **After this notebook you can**
# - name the five stages, say what each destroys, and say why their order matters,
# - read the ranges of four papers, and know how this workbook scales them to its small drawn faces,
# - repeat any degradation exactly from its record,
# - say how fast pixels and how fast *identity* get lost as the damage grows,
# - show that very different faces can look equal once ruined: the information is gone, and only reference photos or
#   invention can bring it back.
#
# **You need** notebook 01 (pictures as tensors, PSNR, identity cosine).

# %% tags=["parameters"]
profile = "toy"  # "toy": drawn faces and the networks that ship; "paper": 512 px and the published ranges
seed = 0  # every random number below follows from it
resolution = 128  # side of the pictures in pixels; 512 for the paper profile
people = 24  # how many people the curves are averaged over
pool = 80  # how many people compete for being mistaken for each other
severe = "toy-refldm-severe"  # "refldm-severe" for the paper profile
shown_presets = ["toy-refldm-moderate", "toy-refldm-train", "toy-refldm-severe", "toy-pdgrad", "toy-ldbfr-medium", "toy-diffmac"]

# %%
from dataclasses import replace

import numpy as np
import torch

from refbfr_core import metrics
from refbfr_core import notebook as nb
from refbfr_core.degradation import PRESETS, Degradation, replay, stage_pictures, stages
from refbfr_core.faces import VIEW_NAMES, ToyFaces, Views
from refbfr_core.metrics import mean_interval

book = nb.start("02_how_faces_are_ruined", profile=profile, seed=seed)

toy = ToyFaces(resolution)
crowd = toy.identities(max(people, pool), seed=seed, split="test")
photos = toy.render(crowd[:people], toy.views(crowd[:people], 2, seed=seed)).images.clone()  # (people, 2, 3, H, W)
faces, others = photos[:, 0], photos[:, 1]  # the picture to ruin, and another photo of the same person
print("faces:", tuple(faces.shape), faces.dtype, f"values {float(faces.min()):.2f} to {float(faces.max()):.2f}")

# %% [markdown]
# ## 1 · Five stages
#
# The recipe of nearly all blind face restoration papers is
#
# $$y = \Big[\big(x \circledast k_\sigma\big)\!\downarrow_r +\; n_\delta\Big]_{\mathrm{JPEG}_q}\!\uparrow$$
#
# read from the inside out: the picture $x$ is **blurred** with a kernel of width $\sigma$, made **smaller** by a factor
# $r$, gets **noise** of strength $\delta$, is **compressed** as a JPEG of quality $q$, and is finally **enlarged** to its
# old size. Each stage stands for something that happens to real photos: a lens out of focus, a face far away, a dark
# scene, a messenger that saves storage.
#
# A `DegradationRecord` holds the strengths. We start from one that does nothing and switch on one stage at a time.

# %%
nothing = replace(
    Degradation.preset(severe).draw(1, seed=seed)[0],
    sigma_x=None, sigma_y=None, scale=None, noise=None, jpeg_quality=None, jpeg_quality_drawn=None,
)  # fmt: skip
alone = {
    "blur σ": [replace(nothing, sigma_x=s, sigma_y=s) for s in (0.5, 1.0, 2.0, 4.0)],
    "smaller by r": [replace(nothing, scale=r) for r in (2.0, 4.0, 8.0, 16.0)],
    "noise δ": [replace(nothing, noise="gaussian", noise_sigma=d) for d in (5.0, 10.0, 20.0, 40.0)],
    "JPEG q": [replace(nothing, jpeg_quality=q) for q in (80, 50, 30, 10)],
}
strengths = [["0.5 px", "1 px", "2 px", "4 px"], ["2", "4", "8", "16"], ["5", "10", "20", "40"], ["80", "50", "30", "10"]]
face = faces[1:2]
rows = [[face[0]] + [replay(face, record)[0] for record in records] for records in alone.values()]
figure = nb.image_grid(
    rows, row_labels=list(alone), captions=[["untouched", *texts] for texts in strengths], cell=1.0
)
book.save(figure, "02_stages_alone", kind="jpg", alt="One drawn face under four kinds of damage of growing strength: blur "
          "softens it, shrinking leaves blocks, noise adds grain, JPEG adds squares and colour stains.")

# %% [markdown]
# Look for what *survives*. Blur and shrinking remove fine detail and keep colours. Noise hides weak contrasts. JPEG
# keeps brightness better than colour, because it stores colour at half the size.
#
# The blur does not have to be round: in half of the draws the kernel is an ellipse at a random angle, as from a moving
# camera.

# %%
kernels = [(1.0, 1.0, 0.0), (3.0, 3.0, 0.0), (4.0, 1.0, 0.6), (1.0, 4.0, 0.0)]
figure, axes = nb.blank_figure(1, 4, cell_width=1.5, cell_height=1.6)
for ax, (sigma_x, sigma_y, angle) in zip(axes[0], kernels):
    kernel = stages.gaussian_kernel(sigma_x, sigma_y, angle, size=21)
    ax.imshow(kernel / kernel.max(), vmin=0, vmax=1, cmap="gray")
    ax.set_title(f"{sigma_x:g} × {sigma_y:g} px\n{np.degrees(angle):.0f}°, sum {kernel.sum():.2f}", fontsize=8)
    ax.set(xticks=[], yticks=[])
nb.show(figure, alt="Four blur kernels as bright spots: a small round one, a large round one, a tilted ellipse and an upright ellipse.")

# %% [markdown]
# ## 2 · One degradation, stage by stage
#
# Now all stages in a row, with strengths drawn from ReF-LDM's severe range.

# %%
lq, records = Degradation.preset(severe)(face, seed=seed)
print(records[0].describe())
pictures = stage_pictures(face, records[0])
names = ["input", "blur", "downsample", "noise", "jpeg", "output"]
figure = nb.image_grid(
    [[pictures[name][0] for name in names]],
    column_labels=[f"{name}\n{pictures[name].shape[-1]} px wide" for name in names],
)
nb.show(figure, kind="jpg", alt="The same face after each stage: sharp, blurred, a handful of coarse pixels, the same with grain, "
        "with compression stains, and enlarged to a soft blur.")

# %% [markdown]
# In the middle of the recipe the whole face is only a few pixels wide. Everything the restorer will ever know about
# this face is in those pixels.
#
# ### Why the order matters
#
# The same stages in another order leave another picture. Noise that is added *before* shrinking is blurred and skipped
# together with the picture; noise that is added *after* it becomes coarse grain once the picture is enlarged again. The
# papers add it after, as a camera does: the noise belongs to the sensor's pixels.

# %%
array = face[0].permute(1, 2, 0).numpy().astype(np.float64)
side, small, delta = resolution, resolution // 8, 20.0


def shrink(picture):
    return stages.resize(stages.blur(picture, stages.gaussian_kernel(3.0, 3.0)), small, small)


quiet = stages.resize(shrink(array), side, side)
noisy_first = shrink(array + stages.gaussian_noise(side, side, delta, seed=seed))
noisy_last = shrink(array) + stages.gaussian_noise(small, small, delta, seed=seed)
left_over = {
    "noise, then blur and shrink": 255 * float((stages.resize(noisy_first, side, side) - quiet).std()),
    "blur and shrink, then noise": 255 * float((stages.resize(noisy_last, side, side) - quiet).std()),
}
nb.table(
    [{"order": name, "noise left (grey levels)": value} for name, value in left_over.items()],
    caption=f"Standard deviation of what the same noise ({delta:g} grey levels) leaves in the enlarged picture",
    digits=1,
)

# %% [markdown]
# ## 3 · The papers' ranges, and their toy twins
#
# A *preset* is a set of ranges; each picture draws its own strengths from them. Here are the ranges the four papers
# state, for pictures of 512 px, and the twins this workbook uses for its drawn faces of 128 px. Every preset says where
# its numbers come from and what had to be chosen because the paper does not say it.

# %%
def span(pair):
    low, high = pair
    return f"{low:g}" if low == high else f"{low:g} – {high:g}"


nb.table(
    [
        {
            "preset": ranges.name,
            "for": f"{ranges.resolution} px",
            "blur σ (px)": span(ranges.blur_sigma),
            "smaller by r": span(ranges.scale),
            "noise δ": span(ranges.noise_sigma),
            "JPEG q": span(ranges.jpeg_quality),
        }
        for ranges in PRESETS.values()
    ],
    caption="All presets. Noise in grey levels of 255; 'toy-' marks the twin for 128 px",
)

# %%
print(PRESETS[severe].describe())
print(PRESETS["pdgrad"].describe())

# %% [markdown]
# How a twin is made: blur widths are measured in pixels, so they shrink with the picture, by 128/512. For the shrinking
# factor a literal quarter would leave as many pixels as the papers' pictures have. Drawn faces carry their identity in
# coarser features than photographs do (hair style, skin tone, face shape), so they would hardly suffer. The twins go
# further on purpose, and say so.

# %%
sample = faces[[1, 3, 4, 7, 8]]
rows = [list(sample)] + [list(Degradation.preset(name)(sample, seed=seed)[0]) for name in shown_presets]
figure = nb.image_grid(rows, row_labels=["untouched", *shown_presets], cell=0.95)
book.save(figure, "02_presets", kind="jpg", presets=shown_presets, alt="Five drawn faces in the first row and the same faces "
          "ruined by six presets below: moderate ones stay recognisable, severe ones are soft blurs with stains.")

# %% [markdown]
# ## 4 · Records and replay
#
# Every draw is recorded. A record is a line of text; with it the same damage can be done again, to the bit, next year
# and on another picture. And what happens to a picture depends on its own seed only, not on the batch it travels in.

# %%
print(records[0].to_json())

again = replay(face, records)
batch, batch_records = Degradation.preset(severe)(faces[:4], seed=seed)
single, _ = Degradation.preset(severe)(faces[2:3], seeds=[batch_records[2].seed])
print("replayed:", "same bytes" if torch.equal(again, lq) else "different")
print("third of a batch of four, and alone:", "same bytes" if torch.equal(batch[2], single[0]) else "different")

# %% [markdown]
# ## 5 · What survives?
#
# We turn one dial from 0 (untouched) to 1 (the hard end of the severe range) and watch two measures on the same people:
#
# - **PSNR** compares pixels, in decibels; higher is better.
# - **Identity cosine** compares what the *judge* sees: a network that was trained to tell drawn people apart. 1 means the
#   same direction in its space. For scale we also measure it on untouched pictures: two photos of the same person, and
#   photos of two different people.

# %%
def dial(s, i):
    """The damage at setting s in [0, 1] for picture i: blur, shrinking, noise and JPEG all grow together."""
    if s == 0:
        return nothing
    return replace(nothing, sigma_x=4 * s, sigma_y=4 * s, scale=1 + 15 * s, noise="gaussian",
                   noise_sigma=20 * s, jpeg_quality=int(100 - 70 * s), noise_seed=1000 * seed + i)  # fmt: skip


settings = [0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0]
ruined = {s: replay(faces, [dial(s, i) for i in range(people)]) for s in settings}
psnr = {s: metrics.compute("psnr", ruined[s], faces) for s in settings}
ids = {s: metrics.compute("ids", ruined[s], faces) for s in settings}
same_person = metrics.compute("ids", others, faces)
stranger = metrics.compute("ids", faces.roll(1, dims=0), faces)

# %%
figure, (axes,) = nb.blank_figure(1, 2, cell_width=3.6)
for ax, values, label in ((axes[0], psnr, "PSNR (dB)"), (axes[1], ids, "identity cosine (judge)")):
    intervals = [mean_interval(values[s]) for s in settings]
    ax.plot(settings, [one.mean for one in intervals], marker="o", label="ruined against untouched")
    ax.fill_between(settings, [one.low for one in intervals], [one.high for one in intervals], alpha=0.25)
    ax.set(xlabel="damage (0 untouched, 1 hard end of severe)", ylabel=label)
axes[1].axhline(float(same_person.mean()), linestyle="--", color="black", label="two photos of a person")
axes[1].axhline(float(stranger.mean()), linestyle=":", color="black", label="two different people")
axes[1].legend()
book.save(figure, "02_what_survives", people=people, settings=settings,
          alt="Two falling curves over the damage. PSNR drops fast at once and then slowly; the identity cosine stays high at "
          "first and then falls towards the level of two different people.")

# %%
i = 4
figure = nb.image_grid(
    [[ruined[s][i] for s in settings]],
    captions=[[f"{s:g}\n{float(psnr[s][i]):.0f} dB, {float(ids[s][i]):.2f}" for s in settings]],
)
nb.show(figure, kind="jpg", alt="One face at eight settings of the dial, from untouched to almost unrecognisable, with its PSNR and "
        "identity cosine below each.")

# %% [markdown]
# The two measures do not fall together. PSNR drops at the first touch, although anybody still recognises the person;
# identity holds on while the pixels change and gives way later. A restorer that is judged by PSNR alone is judged on the
# wrong question. This workbook always reports both.
#
# ## 6 · Many faces, one ruin
#
# How can it be that information is *gone* and not just hard to see? Because different faces lead to the same ruined
# picture. Let us find such a pair. We draw many people in exactly the same view, ruin all of them with one and the same
# record, and look for two *different* people whose ruined pictures are closest.

# %%
same_view = Views(torch.zeros(pool, 1, len(VIEW_NAMES))).replace(glasses=-1.0)  # frontal, plain light, no glasses
portraits = toy.render(crowd[:pool], same_view).images[:, 0].clone()

damage = replace(dial(1.0, 0), noise=None, jpeg_quality=None)  # no noise: only what blur and shrinking leave
blurred = replay(portraits, damage)
distance = 255 * torch.cdist(blurred.flatten(1), blurred.flatten(1)) / blurred[0].numel() ** 0.5
distance.fill_diagonal_(float("inf"))
closest = int(distance.argmin())
a, b = closest // pool, closest % pool
noise_floor = 20.0  # grey levels of noise at the same setting of the dial
print(f"people {a} and {b}: ruined pictures differ by {float(distance[a, b]):.1f} grey levels (root mean square); "
      f"the noise of this setting alone is {noise_floor:g}")

# %%
pair = portraits[[a, b]]
with_noise = replay(pair, [dial(1.0, 1), dial(1.0, 2)])
cosine_clean = float(metrics.compute("ids", pair[:1], pair[1:]))
figure = nb.image_grid(
    [[pair[0], blurred[a], with_noise[0]], [pair[1], blurred[b], with_noise[1]]],
    row_labels=[f"person {a}", f"person {b}"],
    column_labels=["untouched", "blurred and shrunk", "and noise, JPEG"],
    cell=1.4,
)
book.save(figure, "02_two_faces_one_ruin", kind="jpg", pair=[a, b], pool=pool, alt="Two different drawn people in the first column; "
          "blurred and shrunk in the second column, and with noise and JPEG in the third, they can hardly be told apart.")

# %% [markdown]
# Which of the two people is in the ruined picture? Nobody can know: not a person, not a network. A restorer that shows
# one sharp face has made a choice. Two kinds of answers are possible:
#
# - **Play safe** and show the average of all faces that fit. That maximises PSNR and looks blurred (Blau and Michaeli
#   2018).
# - **Choose** one face that fits. It looks sharp, and it may be the wrong person.

# %%
nearest = distance[a].argsort()[:7].tolist()
average = portraits[[a, *nearest]].mean(dim=0)
figure = nb.image_grid(
    [[blurred[a], *portraits[nearest[:5]], average]],
    column_labels=["ruined", *["fits"] * 5, "average of 8"],
)
nb.show(figure, kind="jpg", alt="A ruined face, five sharp faces of different people that fit it almost equally well, and the "
        "blurred average of eight such faces.")

# %% [markdown]
# This is where reference photos come in. They do not sharpen the picture; they say *which* of the faces that fit is the
# right one. And if the photos show somebody else, they say the wrong thing just as firmly.
#
# ## Checks

# %%
nb.check(torch.equal(again, lq), "a record replays to the same bytes")
nb.check(torch.equal(batch[2], single[0]), "a picture's damage does not depend on its batch")
nb.check_above(left_over["blur and shrink, then noise"], 3 * left_over["noise, then blur and shrink"],
               "noise after shrinking leaves at least three times as much as noise before it")
nb.check_close(ruined[0.0], faces, 1.5 / 255, "the dial at 0 changes nothing but rounding")
order = [float(psnr[s].mean()) for s in settings[1:]]
nb.check(all(x > y for x, y in zip(order, order[1:])), "PSNR falls at every turn of the dial", first=order[0], last=order[-1])
nb.check_interval_above(ids[0.1] - ids[1.0], 0.2, "identity falls from light to severe damage (paired by person)")
nb.check_interval_above(same_person - stranger, 0.3, "the judge tells people apart on untouched pictures")
nb.check_above(float(ids[0.1].mean()), float(same_person.mean()) - 0.1,
               "light damage costs the judge no more than another photo of the person does")
nb.check_below(float(distance[a, b]), noise_floor, "two different people, ruined, differ by less than the noise")
nb.check_below(cosine_clean, float(same_person.quantile(0.25)), "and the judge sees different people before the damage")

# %% [markdown]
# ## Exercises
#
# **1.** Replay the record of section 2 on another person's face. Which numbers of the record depend on the face, and
# which do not?
#
# <details><summary>Solution</summary>
#
# ```python
# nb.show(nb.image_grid(replay(faces[5:6], records)), kind="jpg", alt="Another face with the same damage as in section 2.")
# ```
#
# None depends on the face: the record holds strengths and the seed of the noise. That is what makes comparisons fair:
# two methods can be given exactly the same damage.
#
# </details>
#
# **2.** Does identity get lost by blur or by noise? Turn the dial of section 5 with one stage at a time (the others
# switched off) and compare the identity cosine at the end.
#
# <details><summary>Solution</summary>
#
# ```python
# for name, record in {
#     "blur": replace(nothing, sigma_x=4.0, sigma_y=4.0),
#     "shrink": replace(nothing, scale=16.0),
#     "noise": replace(nothing, noise="gaussian", noise_sigma=20.0),
#     "JPEG": replace(nothing, jpeg_quality=30),
# }.items():
#     bad = replay(faces, record)
#     print(name, float(metrics.compute("psnr", bad, faces).mean()), float(metrics.compute("ids", bad, faces).mean()))
# ```
#
# Shrinking costs most identity, because it removes the shape of the features. Compare it with noise: about the same PSNR,
# but very different identity.
#
# </details>
#
# **3.** In section 6 the pair was found among a limited number of people. What happens to the smallest distance when
# `pool` doubles, and what does that say about real populations?
#
# <details><summary>Solution</summary>
#
# Set `pool = 160` in the parameters cell and run the notebook again. The closest pair gets closer: with more people
# there are more look-alikes. In a population of millions, a ruined face of a few pixels fits a very large number of
# people. This is one reason why a restored face must never be used to identify somebody.
#
# </details>
#
# ## At full scale
#
# - The papers ruin photographs of 512 px; the low resolution reaches 16 px for ReF-LDM's severe range and about 13 px for
#   PDGrad's. The code is the same: choose the preset without "toy-".
# - Real damage also comes from video coders, scaling in several rounds, sharpening filters and beauty filters. A network
#   trained on this recipe meets damage it has never seen; all papers test on real bad photos for that reason.
# - The judge of the papers is ArcFace, trained on photographs of many thousand people; numbers of different judges cannot
#   be compared.
#
# ## References
#
# - X. Li, C. Chen, S. Zhou, X. Lin, W. Zuo, L. Zhang: *Blind Face Restoration via Deep Multi-scale Component
#   Dictionaries*, ECCV 2020 (the recipe in this form).
# - X. Wang, Y. Li, H. Zhang, Y. Shan: *Towards Real-World Blind Face Restoration with Generative Facial Prior* (GFPGAN),
#   CVPR 2021.
# - S. Menon, A. Damian, S. Hu, N. Ravi, C. Rudin: *PULSE: Self-Supervised Photo Upsampling via Latent Space Exploration
#   of Generative Models*, CVPR 2020 (many faces explain one small picture).
# - Y. Blau, T. Michaeli: *The Perception-Distortion Tradeoff*, CVPR 2018.
# - C.-W. Hsiao et al.: *ReF-LDM: A Latent Diffusion Model for Reference-based Face Image Restoration*, NeurIPS 2024.
# - The other ranges are those of PDGrad, LD-BFR and DiffMAC; `PRESETS[name].source` names the section of each paper.
