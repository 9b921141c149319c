# %% [markdown]
# # 03 · Diffusion from scratch
#
# A diffusion model learns a single skill: to look at a noisy picture and say which part of it is noise. Drawing new
# faces, restoring ruined ones and listening to reference photos are all built on that one skill. This notebook builds
# it from nothing: first for a single number, then for points in the plane, where we can train a network in seconds and
# know the perfect answer, and at the end for the face network that ships with this workbook.
#
# **After this notebook you can**
# - write down the forward process and say what a *schedule* is,
# - turn a noise estimate into an estimate of the clean picture, and say when that estimate is worthless,
# - train a small denoiser and compare it with the best denoiser possible,
# - write the DDIM step in two lines and show that it equals the one in the `diffusers` library,
# - choose a sampler, a number of steps, a timestep spacing and a guidance scale, and say what each of them changes.
#
# **You need** some Python and the words *mean*, *variance* and *Gaussian*. Notebook 01 explains pictures as tensors.

# %% tags=["parameters"]
profile = "toy"  # "toy": networks that ship with the workbook; "paper": the published ones
seed = 0  # every random number below follows from it
training_steps = 2000  # of the small network in the plane
points = 1000  # how many points each sampler draws
preset = "toy-refldm-severe"  # how the face in the last section is ruined; "refldm-severe" for the paper profile
face_steps = 10  # denoising steps for that face; the published network is used with 50 or 100

# %%
import math

import torch
from torch import nn

from refbfr_core import diffusion
from refbfr_core import notebook as nb
from refbfr_core.images import from_network, to_network
from refbfr_core.notebook.mixture import Mixture, energy_distance, ring

book = nb.start("03_diffusion_from_scratch", profile=profile, seed=seed)


def random(stream):
    """A generator of its own for every use, so that cells can be run in any order."""
    return torch.Generator().manual_seed(1000 * seed + stream)


# %% [markdown]
# ## 1 · Drowning a number in noise
#
# Take a number $x_0$ and mix it with Gaussian noise $\varepsilon$ of mean 0 and variance 1:
#
# $$x_t = \sqrt{\bar\alpha_t}\; x_0 + \sqrt{1-\bar\alpha_t}\;\varepsilon$$
#
# The number $\bar\alpha_t$ ("alpha bar") says how much of the *variance* is still signal. The step $t$ counts from 0
# (almost clean) to 999 (almost only noise), and $\bar\alpha_t$ falls from almost 1 to almost 0. The two factors are
# chosen so that data of variance 1 keep the variance 1 at every step:
# $\bar\alpha_t \cdot 1 + (1-\bar\alpha_t)\cdot 1 = 1$. This recipe is called the *forward process* (Ho et al. 2020,
# eq. 4). Nothing in it is learned.
#
# Our data are the simplest with any structure: half of the numbers lie near −1, the other half near +1.

# %%
schedule = diffusion.refldm_schedule()
print(schedule)

spikes = Mixture(means=torch.tensor([[-0.98], [0.98]]), std=0.2, labels=torch.tensor([0, 1]))
x0, _ = spikes.sample(20_000, random(1))
noise = torch.randn(x0.shape, generator=random(2))

shown = (0, 150, 350, 600, 999)
figure, axes = nb.blank_figure(1, len(shown), cell_width=1.7, cell_height=1.6, sharey=True)
variances = []
for ax, t in zip(axes[0], shown):
    x_t = diffusion.add_noise(x0, noise, t, schedule)
    variances.append(float(x_t.var()))
    ax.hist(x_t[:, 0], bins=60, range=(-3.5, 3.5), density=True)
    ax.set_title(f"t = {t}\nvariance {variances[-1]:.2f}", fontsize=9)
nb.show(figure, alt="Five histograms: two sharp spikes at -1 and +1 melt step by step into one bell curve of equal variance.")

# %% [markdown]
# The variance stays at 1 while the shape melts into a bell curve. Going from left to right is easy and needs no
# knowledge. A diffusion model learns to go from right to left.
#
# ## 2 · Drowning a face
#
# A picture is only a long list of numbers, so the same line of code applies. Networks see pictures in the range
# [−1, 1] (`to_network`); noisy pictures leave this range, and for display we cut them off at black and white.
#
# Move the slider. On a page that runs no scripts (GitHub, for example) the frames stand side by side instead.

# %%
from refbfr_core.faces import ToyFaces

toy = ToyFaces(128)
person = toy.identities(2, seed=seed, split="test")[1]
face = toy.render(person, toy.views(person, 1, seed=seed)).images[0].clone()  # (1, 3, 128, 128) in [0, 1]
face_noise = torch.randn(face.shape, generator=random(3))

times = [0, 50, 100, 200, 300, 450, 600, 800, 999]
frames = [from_network(diffusion.add_noise(to_network(face), face_noise, t, schedule))[0] for t in times]
nb.frame_strip(
    frames,
    [f"t = {t}" for t in times],
    alt="A drawn face disappears in coloured noise as t grows from 0 to 999.",
    max_bytes=27_000,
    still_frames=3,
)

# %% [markdown]
# Look at what goes first: freckles and hair strands are gone long before the shape of the head and the colour of the
# background. Noise is equally strong at all scales, pictures are not: their fine detail is weak, so it drowns first.
# Sampling runs in the opposite direction, so a diffusion model decides the rough shape first and fine detail last.
#
# ## 3 · The schedule
#
# A *schedule* is the list $\bar\alpha_0, \dots, \bar\alpha_{999}$. It is given through small variances $\beta_t$ by
# $\bar\alpha_t = \prod_{s \le t} (1-\beta_s)$. Every paper chooses its own. The *signal-to-noise ratio*
# $\bar\alpha_t/(1-\bar\alpha_t)$ shows the differences best, on a logarithmic axis.

# %%
figure, (axes,) = nb.blank_figure(1, 2, cell_width=3.2, cell_height=2.2)
for name in ("refldm", "pdgrad", "diffmac", "cosine"):
    each = diffusion.make_schedule(name)
    axes[0].plot(each.sqrt_alphas_cumprod, label=name)
    axes[1].semilogy(each.snr, label=name)
axes[0].set(xlabel="timestep t", ylabel="factor of the picture", title="what is left of the picture")
axes[1].set(xlabel="timestep t", ylabel="signal-to-noise ratio", title="the same as a ratio", ylim=(1e-5, 1e4))
axes[0].legend()
book.save(
    figure,
    "03_schedules",
    alt="Two plots over the timestep: the factor of the picture falls from 1 to about 0, and the signal-to-noise ratio "
    "falls over seven powers of ten; four schedules differ mostly in how fast.",
)

# %% [markdown]
# The numbers below compare our schedule with the constants of the authors' released configuration for ReF-LDM
# (Hsiao et al. 2024): the square roots of $\beta$ rise linearly. From the two end values everything else follows, so
# this table must agree to the last digit shown.

# %%
released = {"linear_start": 0.0015, "linear_end": 0.0155}  # the authors' configuration file
nb.beside_paper(
    [
        ("first beta", float(schedule.betas[0]), released["linear_start"], "released configuration"),
        ("last beta", float(schedule.betas[-1]), released["linear_end"], "released configuration"),
        ("alpha bar at t = 0", schedule.alpha_bar(0), 1 - released["linear_start"], "1 − first beta"),
        ("alpha bar at t = 999", schedule.alpha_bar(999), None, "follows from the ramp"),
    ],
    caption="ReF-LDM's schedule: computed here, and as released by the authors",
    digits=6,
)

# %% [markdown]
# Note that $\bar\alpha_{999}$ is small but not zero. Even at the last step a trace of the picture is left, and we will
# see below that this matters.
#
# ## 4 · From a noise estimate to a picture
#
# Suppose somebody tells us the noise. Then we solve the forward process for the clean picture:
#
# $$\hat x_0 = \frac{x_t - \sqrt{1-\bar\alpha_t}\;\hat\varepsilon}{\sqrt{\bar\alpha_t}}$$
#
# With the true noise this is exact at every $t$. A network's estimate is never exact, and the formula multiplies its
# error by $\sqrt{1-\bar\alpha_t}/\sqrt{\bar\alpha_t}$, the factor above each column below. There the estimate is wrong by
# the same 10 % everywhere.

# %%
clumsy = face_noise + 0.1 * torch.randn(face.shape, generator=random(4))
estimates, magnification = [], []
for t in (50, 300, 600, 850, 999):
    x_t = diffusion.add_noise(to_network(face), face_noise, t, schedule)
    estimates.append((x_t, diffusion.predict_x0(x_t, face_noise, t, schedule), diffusion.predict_x0(x_t, clumsy, t, schedule)))
    magnification.append(f"t = {t}\n× {math.sqrt(1 / schedule.alpha_bar(t) - 1):.1f}")
figure = nb.image_grid(
    [[from_network(picture[0]) for picture in row] for row in zip(*estimates)],
    row_labels=["noisy", "true noise", "10 % wrong"],
    column_labels=magnification,
    cell=0.8,
)
nb.show(figure, kind="jpg", max_bytes=31_000, alt="Five columns of growing noise: with the true noise the face comes back exactly; with a slightly "
        "wrong noise it is fine at t = 50, grainy at 600 and unrecognisable at 999.")

# %% [markdown]
# This is why samplers take many small steps instead of a single jump from $t = 999$: at large $t$ the estimate
# $\hat x_0$ can only be a rough guess.
#
# ## 5 · Train a denoiser
#
# Now the noise is no longer given, and a network has to guess it. In the plane we can do this in seconds. Our "faces"
# are points on a ring of nine blobs, in three classes (think of three people, each with three poses).

# %%
world = ring(blobs=9, classes=3)
data, labels = world.sample(20_000, random(5))

figure, axes = nb.blank_figure(1, 4, cell_width=1.8, cell_height=1.9)
for ax, t in zip(axes[0], (0, 100, 300, 999)):
    noise = torch.randn(data.shape, generator=random(6))
    nb.scatter(ax, diffusion.add_noise(data, noise, t, schedule)[:400], labels[:400], title=f"t = {t}")
nb.show(figure, alt="Nine blobs of points on a ring, in three colours, dissolve into one round cloud as t grows.")

# %% [markdown]
# The network gets the noisy point, the timestep and the class. Class number 3 means "no class given"; we will need it
# in section 10. Point and timestep enter as sines and cosines of several frequencies, because a small network learns
# sharp boundaries and a wide range of noise levels faster from waves than from raw numbers. For the timestep we use the
# logarithm of the signal-to-noise ratio of section 3, which says directly how noisy the point is.


# %%
UNKNOWN = 3
noise_level = schedule.snr.log().float() / 4  # about -1.8 to 1.6


def waves(x, frequencies=(1.0, 2.0, 4.0)):
    angle = (x[:, :, None] * torch.tensor(frequencies)).flatten(1)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class Denoiser(nn.Module):
    """Estimate the noise in points (N, 2) at timesteps (N,), given classes (N,)."""

    def __init__(self, classes=3, width=128):
        super().__init__()
        self.label = nn.Embedding(classes + 1, 16)  # the last one stands for "unknown"
        sizes = [2 + 12 + 1 + 6 + 16, width, width, width]
        hidden = [layer for a, b in zip(sizes, sizes[1:]) for layer in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, 2))

    def forward(self, x_t, t, label):
        level = noise_level[t][:, None]
        return self.layers(torch.cat([x_t, waves(x_t), level, waves(level), self.label(label)], dim=1))


# %% [markdown]
# Training has four steps: draw points, draw a timestep for each, add noise, and let the network guess that noise. The
# loss is the mean squared error (Ho et al. 2020, eq. 14). One time in ten the class is hidden.


# %%
def noisy_batch(size, generator, hide=0.1):
    rows = torch.randint(len(data), (size,), generator=generator)
    t = torch.randint(len(schedule), (size,), generator=generator)
    noise = torch.randn(size, 2, generator=generator)
    hidden = torch.rand(size, generator=generator) < hide
    label = torch.where(hidden, UNKNOWN, labels[rows])
    return diffusion.add_noise(data[rows], noise, t, schedule), t, label, noise


def train(steps, hide=0.1, learning_rate=8e-3):
    torch.manual_seed(seed)
    network, generator, losses = Denoiser(), random(7), []
    optimiser = torch.optim.AdamW(network.parameters(), lr=learning_rate)
    pace = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps)
    for _ in range(steps):
        x_t, t, label, noise = noisy_batch(256, generator, hide)
        loss = nn.functional.mse_loss(network(x_t, t, label), noise)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        pace.step()
        losses.append(float(loss.detach()))
    return network.eval(), losses


# %%
network, losses = train(training_steps)


@torch.no_grad()
def denoise(x_t, t, label=UNKNOWN):
    """The trained network as a function of points, one timestep, and a class."""
    return network(x_t, torch.full((len(x_t),), t), torch.full((len(x_t),), label))


# %% [markdown]
# How good can it get? Not perfect: many pairs of point and noise lead to the same noisy point, and the best one can do
# is to guess their *average*, $\mathrm{E}[\varepsilon \mid x_t]$. For Gaussian blobs this average has a closed form
# (`Mixture.exact_eps`), so we can draw the floor that no network can go below.

# %%
fresh, _ = world.sample(4000, random(8))
figure, (axes,) = nb.blank_figure(1, 2, cell_width=3.6)
smooth = torch.tensor(losses).unfold(0, 50, 50).mean(dim=1)
axes[0].plot(torch.arange(len(smooth)) * 50 + 25, smooth)
axes[0].set(xlabel="training step", ylabel="loss", title="loss while training (mean of 50 steps)")
grid, reached, floor = list(range(0, 1000, 37)), [], []
for t in grid:
    noise = torch.randn(fresh.shape, generator=random(100 + t))
    x_t = diffusion.add_noise(fresh, noise, t, schedule)
    reached.append(float((denoise(x_t, t) - noise).square().mean()))
    floor.append(float((world.exact_eps(x_t, t, schedule) - noise).square().mean()))
axes[1].plot(grid, reached, label="trained network")
axes[1].plot(grid, floor, label="best possible")
axes[1].set(xlabel="timestep t", ylabel="loss", title="loss at each timestep")
axes[1].legend()
nb.show(figure, alt="Left: the training loss falls quickly and then flattens. Right: over the timesteps the loss of the network "
        "lies just above the lowest possible loss, which is near 1 at t = 0 and near 0 at t = 999.")

# %% [markdown]
# Two lessons hide in the right plot. First, a diffusion loss that stops falling is not a failure: it has reached the
# part that cannot be known. Second, the loss is *largest* at small $t$, where the noise is so weak that the point alone
# does not reveal it. Section 4 says why this does no harm: at small $t$ the error is hardly magnified.
#
# ## 6 · The DDIM step, by hand
#
# To take a step from $t$ to an earlier $t'$, use the estimate twice: compute $\hat x_0$, then noise it again, *less
# than before and with the same noise*:
#
# $$x_{t'} = \sqrt{\bar\alpha_{t'}}\;\hat x_0 + \sqrt{1-\bar\alpha_{t'}}\;\hat\varepsilon$$
#
# This is DDIM without randomness (Song et al. 2021, eq. 12 with $\sigma = 0$).


# %%
def my_ddim_step(x_t, eps, a, a_prev):
    x0 = (x_t - math.sqrt(1 - a) * eps) / math.sqrt(a)  # what the picture would be if eps were right
    return math.sqrt(a_prev) * x0 + math.sqrt(1 - a_prev) * eps  # the same noise again, but less of it


def my_sampler(x, timesteps):
    for t, (a, a_prev) in zip(timesteps, diffusion.alpha_bar_pairs(timesteps, schedule)):
        x = my_ddim_step(x, denoise(x, t), a, a_prev)
    return x


start = torch.randn(points, 2, generator=random(9))
timesteps = diffusion.trailing_timesteps(1000, 50)
mine = my_sampler(start, timesteps)

# %% [markdown]
# The same run with this workbook's sampler, and with the scheduler of the `diffusers` library, which other people's
# code will use. All three have to agree up to rounding.

# %%
ours = diffusion.sample(denoise, start, timesteps, schedule)

library = diffusion.to_scheduler(schedule, spacing="trailing")
library.set_timesteps(50)
theirs = start
for t in library.timesteps:
    theirs = library.step(denoise(theirs, int(t)), t, theirs).prev_sample

nb.table(
    [
        {"compared": "by hand and refbfr_core", "largest difference": float((mine - ours).abs().max())},
        {"compared": "by hand and diffusers", "largest difference": float((mine - theirs).abs().max())},
    ],
    caption=f"{points} points, 50 steps, the same start; coordinates reach about 2",
    digits=7,
)

# %%
figure, axes = nb.blank_figure(1, 3, cell_width=2.1, cell_height=2.2)
drawn, real = mine[:500], fresh[:500]
nb.scatter(axes[0][0], start[:500], title="start: pure noise")
nb.scatter(axes[0][1], drawn, world.nearest_label(drawn), title="after 50 DDIM steps")
nb.scatter(axes[0][2], real, world.nearest_label(real), title="real data")
nb.show(figure, alt="A round cloud of noise becomes nine blobs on a ring that look like the real data beside it.")

# %% [markdown]
# The ring is back. The stragglers between the blobs are the network's own errors; with longer training they become
# rarer.
#
# ## 7 · Two samplers: DDIM and DDPM
#
# DDPM (Ho et al. 2020, algorithm 2) also steps towards $\hat x_0$, but adds *fresh* noise at every step. DDIM follows a
# fixed path from its start. Below, four points set out from the same four places, twice with each sampler.

# %%
four = torch.tensor([[0.2, 0.3], [-1.9, 1.7], [-0.4, -0.2], [1.8, -2.0]])


def path(sampler, **options):
    trace = diffusion.Trace(keep=("x_t", "x_prev"))
    sampler(denoise, four, timesteps, schedule, trace=trace, **options)
    return torch.cat([trace.stack("x_t"), trace.stack("x_prev")[-1:]])


runs = {
    "DDIM, first run": path(diffusion.sample),
    "DDIM, second run": path(diffusion.sample),
    "DDPM, seed 1": path(diffusion.sample_ancestral, generators=diffusion.image_generators(1, 4)),
    "DDPM, seed 11": path(diffusion.sample_ancestral, generators=diffusion.image_generators(11, 4)),
}
figure, axes = nb.blank_figure(1, 4, cell_width=1.9, cell_height=2.0)
for ax, (title, steps) in zip(axes[0], runs.items()):
    nb.paths(ax, steps, title=title)
nb.show(figure, alt="Paths of four points from the same starts: the two DDIM plots are smooth and identical; the two DDPM plots "
        "are jagged and end in different places.")

# %% [markdown]
# ## 8 · How many steps?
#
# To score a sampler we need a distance between two clouds of points. The *energy distance* (Székely and Rizzo 2013)
# compares how far points of one cloud lie from points of the other with how far they lie from each other. It is 0 when
# both clouds come from the same distribution. The dotted line is the distance of one real cloud to another.

# %%
truth, _ = world.sample(2000, random(10))
counts = [2, 3, 5, 10, 20, 50, 100]
score = {"DDIM": [], "DDPM": []}
for count in counts:
    visited = diffusion.trailing_timesteps(1000, count)
    score["DDIM"].append(energy_distance(diffusion.sample(denoise, start, visited, schedule), truth))
    generators = diffusion.image_generators(seed, points)
    drawn = diffusion.sample_ancestral(denoise, start, visited, schedule, generators=generators)
    score["DDPM"].append(energy_distance(drawn, truth))

figure, ((ax,),) = nb.blank_figure(cell_width=4.6, cell_height=2.6)
for name, marker in (("DDIM", "o"), ("DDPM", "^")):
    ax.loglog(counts, score[name], marker=marker, label=name)
ax.axhline(abs(energy_distance(fresh[:points], truth)), color="black", linestyle=":", label="real against real")
ax.set(xlabel="network calls", ylabel="energy distance to real data", title="both improve with more steps")
ax.legend()
book.save(figure, "03_steps", points=points, training_steps=training_steps,
          alt="Energy distance to real data against the number of steps from 2 to 100, on logarithmic axes, for DDIM and "
          "DDPM: both fall steeply and then level off.")

# %% [markdown]
# A restoration costs as many network calls as there are steps, so this plot is also a price list. DDIM levels off: from
# then on the error is the network's, not the step size. Compare DDPM at the right end: its fresh noise at every step can
# wash out earlier errors (Karras et al. 2022), if one can afford the steps. The choices of the ReF-LDM authors:

# %%
nb.beside_paper(
    [
        ("DDIM steps, experiments", float(face_steps), 100.0, "Hsiao et al. 2024, section 5.1 and appendix G"),
        ("DDIM steps, released script", float(face_steps), 50.0, "default of the released inference script"),
    ],
    caption="Denoising steps for one face: in the last section of this notebook, and at the authors",
    digits=0,
)

# %% [markdown]
# ## 9 · Which steps? Spacing
#
# With 5 of 1000 timesteps, which five? The rules in use differ in a detail that changes results: whether the walk
# begins at the noisiest step, 999.

# %%
figure, ((ax,),) = nb.blank_figure(cell_width=5.6, cell_height=1.9)
rules = ["trailing", "uniform", "leading", "adm"]
for row, rule in enumerate(rules):
    visited = diffusion.make_timesteps(rule, 1000, 5)
    ax.plot(visited, [row] * 5, marker="o", linestyle="none")
    for t in visited:
        ax.annotate(str(t), (t, row), xytext=(0, 5), textcoords="offset points", ha="center", fontsize=7)
ax.set(yticks=range(4), yticklabels=rules, ylim=(3.5, -0.7), xlabel="timestep t", title="five steps, four rules")
nb.show(figure, alt="Five timesteps of each rule on a line from 0 to 999. Trailing and adm include 999; uniform starts at 801, "
        "leading at 800.")

# %% [markdown]
# Sampling starts from pure noise. If the network is first called at $t = 801$, it is told "a trace of the picture is in
# here", and it is not. It then reads the missing trace as a *weak* picture (Lin et al. 2024). To see this with no
# network to blame, take two equally likely blobs, one "dark" at the origin and one "bright" far from it, and use the
# perfect denoiser. A fair sampler draws the bright one half of the time.

# %%
light = Mixture(means=torch.tensor([[0.0, 0.0], [5.0, 0.0]]), std=0.2, labels=torch.tensor([0, 1]))
noise = torch.randn(4000, 2, generator=random(11))
rows = []
for count in (2, 5, 20, 50):
    for rule in ("trailing", "uniform"):
        visited = diffusion.make_timesteps(rule, 1000, count)
        drawn = diffusion.sample(lambda x, t: light.exact_eps(x, t, schedule), noise, visited, schedule)
        bright = float((light.nearest_label(drawn) == 1).float().mean())
        rows.append({"steps": count, "spacing": rule, "first timestep": visited[0], "share of bright": bright})
spacing = nb.table(rows, caption="Share of 4,000 samples that are bright; fair would be 0.5")
spacing

# %% [markdown]
# With few steps the *uniform* rule draws too few bright samples. On faces this shows as restorations that are too
# flat or too dark. *Trailing* does better at every count. It is not perfectly fair either, because $\bar\alpha_{999}$
# is not quite 0 (section 3). ReF-LDM's released code uses trailing for single images and uniform for whole data sets,
# so its two scripts do not sample alike. This is the kind of detail that a comparison has to name.
#
# ## 10 · Classifier-free guidance
#
# The network has learned two estimates: with the class, $\varepsilon_c$, and without it, $\varepsilon_u$. Their
# difference points towards what is special about the class. Guidance exaggerates it by a factor $s$
# (Ho and Salimans 2022):
#
# $$\varepsilon = \varepsilon_u + s\,(\varepsilon_c - \varepsilon_u)$$
#
# $s = 0$ ignores the class, $s = 1$ is the plain conditional model, $s > 1$ exaggerates. ReF-LDM uses $s = 1.5$ with
# the *reference photos* in the place of the class.

# %%
scales = (0.0, 1.0, 1.5, 4.0)
figure, axes = nb.blank_figure(1, len(scales), cell_width=1.9, cell_height=2.0)
guided = {}
for ax, scale in zip(axes[0], scales):
    predict = diffusion.guided_predict(lambda x, t: denoise(x, t, label=0), denoise, scale)
    guided[scale] = diffusion.sample(predict, start, timesteps, schedule)
    nb.scatter(ax, guided[scale], world.nearest_label(guided[scale]), title=f"scale {scale:g}")
book.save(figure, "03_guidance_scale", points=points, scales=list(scales),
          alt="Points sampled for class 0 with four guidance scales: at 0 the whole ring, at 1 the three blobs of the class, "
          "at 1.5 the same three blobs but tighter, at 4 a thin arc.")

# %%
inside = {scale: float((world.nearest_label(drawn) == 0).float().mean()) for scale, drawn in guided.items()}
to_class = {scale: energy_distance(drawn, truth[world.nearest_label(truth) == 0]) for scale, drawn in guided.items()}
nb.table(
    [{"scale": f"{s:g}", "share in class 0": inside[s], "energy distance to class 0": to_class[s]} for s in scales],
    caption=f"{points} points for each scale, 50 DDIM steps",
)

# %% [markdown]
# A high scale buys certainty with variety: more points belong to the class, but they no longer look like the *whole*
# class. For restoration this is the choice between "surely this person" and "a natural picture".
#
# ## 11 · A seed for every image
#
# A sampler starts from random noise. If the noise of an image depended on the batch it travels in, you could never
# repeat a single row of a table. Here each image owns a generator on the CPU, seeded by its own number.

# %%
batch = diffusion.image_noise(diffusion.image_generators([5, 6, 7, 8], 4), (2,))
alone = diffusion.image_noise(diffusion.image_generators([7], 1), (2,))
usual_batch = torch.randn(4, 2, generator=random(12))
usual_alone = torch.randn(1, 2, generator=random(12))

print("one generator for each image: the third of four", batch[2].tolist())
print("                              alone            ", alone[0].tolist())
print("one generator for the batch:  the third of four", usual_batch[2].tolist())
print("                              alone            ", usual_alone[0].tolist())

# %% [markdown]
# ## 12 · The shipped network, step by step
#
# Everything above carries over to faces. ReF-LDM works on *latents*: a first network (VQGAN) shrinks the picture to a
# small grid of numbers, diffusion happens there, and the same network turns the result back into pixels. Two conditions
# enter the denoiser: the ruined picture, and other photos of the same person. Notebook 00 shows what it can do; here we
# watch it work. `trace=True` keeps the estimate $\hat x_0$ of every step, and we decode them.
#
# One detail differs from section 5. The published network predicts the noise; the small one that ships predicts
# $v = \sqrt{\bar\alpha_t}\,\varepsilon - \sqrt{1-\bar\alpha_t}\,x_0$ (Salimans and Ho 2022), because that trains faster.
# Nothing else changes: from $x_t$ and any one of $\varepsilon$, $x_0$ and $v$ the other two follow
# (`diffusion.eps_and_x0`), and the sampler uses them as before.

# %%
import refbfr_core
from refbfr_core.degradation import Degradation
from refbfr_core.models import decode_latents

pipe = refbfr_core.load_pipeline("refldm", profile=profile, device=str(book.device))
pipe.set_progress_bar_config(disable=True)

big = ToyFaces(pipe.resolution)
photos = big.render(person, big.views(person, 5, seed=seed)).images.clone().to(book.device)  # (1, 5, 3, H, W)
target, references = photos[:, 0], photos[:, 1:]
lq, record = Degradation.preset(preset)(target, seed=seed)
print(record[0].describe())

result = pipe(lq, references, num_inference_steps=face_steps, seed=seed, trace=True)
print(f"{result.settings}; the network predicts {pipe.scheduler.config.prediction_type}")

# %%
latents = result.trace.stack("x0")  # (steps, 1, C, h, w)
chosen = sorted({*range(0, len(latents), -(-len(latents) // 10)), len(latents) - 1})  # at most eleven
with torch.no_grad():
    decoded = decode_latents(pipe.vq, latents[chosen, 0].to(book.device), pipe.config.patch_size)
frames = [lq[0], *from_network(decoded), target[0]]
names = ["ruined", *(f"t = {result.trace.timesteps[i]}" for i in chosen), "truth"]
nb.frame_strip(frames, names, alt="The estimate of the clean face during restoration: blurred and average at first, then with "
               "clearer eyes, mouth and hair, beside the ruined input and the true face.", max_bytes=28_000, still_frames=4)

# %% [markdown]
# The first estimates are blurred: they are averages over all faces that fit (section 5). Detail appears as the choice
# narrows.

# %%
change = (latents[1:] - latents[:-1]).flatten(2).square().mean(dim=2).sqrt()[:, 0]
figure, ((ax,),) = nb.blank_figure(cell_width=4.6, cell_height=2.2)
ax.plot(result.trace.timesteps[1:], change, marker="o")
ax.invert_xaxis()
ax.set(xlabel="timestep t (time runs to the right)", ylabel="change of the estimate", title="how much each step changes the estimate")
nb.show(figure, alt="The root mean square change of the estimated latent from step to step, over the timesteps from 999 down to 0.")

# %% [markdown]
# ## Checks
#
# Every notebook ends with statements that can fail. If one does, something in this notebook is no longer true.

# %%
nb.check_close(variances, [1.0] * len(variances), 0.04, "noising keeps the variance at 1")
nb.check_close(schedule.alpha_bar(0), 1 - released["linear_start"], 1e-9, "the schedule starts where the authors' does")
nb.check_close(schedule.betas[-1], released["linear_end"], 1e-9, "and ends where theirs does")
nb.check_close(diffusion.predict_x0(diffusion.add_noise(to_network(face), face_noise, 500, schedule), face_noise, 500, schedule),
               to_network(face), 1e-4, "with the true noise the picture comes back")
excess = sum(reached) / sum(floor)
nb.check_between(excess, 0.98, 1.25, "the network's loss, as a multiple of the best possible one")
nb.check_close(mine, ours, 1e-4, "the DDIM step by hand equals refbfr_core")
nb.check_close(mine, theirs, 1e-3, "the DDIM step by hand equals diffusers")
nb.check_close(runs["DDIM, first run"], runs["DDIM, second run"], 0.0, "DDIM from the same start ends in the same place")
nb.check(not torch.equal(runs["DDPM, seed 1"][-1], runs["DDPM, seed 11"][-1]), "DDPM with another seed does not")
nb.check(score["DDIM"][-1] < score["DDIM"][0] / 10, "50 times as many steps, at least 10 times closer to the data",
         two_steps=score["DDIM"][0], hundred_steps=score["DDIM"][-1])
nb.check(timesteps[0] == 999, "trailing begins at the noisiest step", first=timesteps[0])
share = {(row["steps"], row["spacing"]): row["share of bright"] for row in rows}
nb.check_above(share[5, "trailing"] - share[5, "uniform"], 0.03, "with 5 steps, trailing draws more bright samples than uniform")
nb.check(inside[0.0] < 0.5 < 0.9 < inside[1.0], "the class is obeyed at scale 1 and ignored at scale 0",
         at_0=inside[0.0], at_1=inside[1.0])
nb.check_above(to_class[4.0], to_class[1.0], "a high scale moves away from the true distribution of the class")
nb.check_close(batch[2], alone[0], 0.0, "an image's noise does not depend on its batch")
nb.check(torch.isfinite(result.images).all(), "the restoration is a picture", steps=len(latents))

# %% [markdown]
# ## Exercises
#
# **1.** `trailing_timesteps(1000, 30)` returns more than 30 timesteps. How many, and why? What would change if the extra
# one were dropped?
#
# <details><summary>Solution</summary>
#
# The stride is floor(1000/30) = 33, and 1000/33 is a little more than 30, so the walk 999, 966, … has 31 stops, the last
# at t = 9. Dropping it would leave the sample at t = 42 and let the last step jump over a larger gap; changing the
# stride to 33.33 would visit other noise levels. The workbook keeps the authors' rule and says so.
#
# ```python
# len(diffusion.trailing_timesteps(1000, 30)), diffusion.trailing_timesteps(1000, 30)[-2:]
# ```
#
# </details>
#
# **2.** Section 8 starts DDIM from pure noise. Start it instead from *real* points noised to $t = 400$, and run only the
# timesteps below 400. How far do the points move, and how often do they end in another class? What does this say about
# restoring a picture by noising it first?
#
# <details><summary>Solution</summary>
#
# ```python
# clean, kind = world.sample(1000, random(20))
# noised = diffusion.add_noise(clean, torch.randn(clean.shape, generator=random(21)), 400, schedule)
# back = diffusion.sample(denoise, noised, [t for t in timesteps if t <= 400], schedule)
# print((back - clean).norm(dim=1).mean(), (world.nearest_label(back) != kind).float().mean())
# ```
#
# A large part of the points ends in another class, usually the next one on the ring. The more noise is added, the more freedom the model has
# to change what was there: more damage can be repaired, and more of the identity can be lost. Notebook 02 asks the same
# question about ruined faces.
#
# </details>
#
# **3.** In section 10 the unconditional estimate comes from hiding the class one time in ten. Train with `hide=0.0` and
# draw the figure again. What goes wrong at scale 4, and why is scale 1 still fine?
#
# <details><summary>Solution</summary>
#
# ```python
# network, losses = train(training_steps, hide=0.0)
# ```
#
# Then run section 10 again (and afterwards train with `hide=0.1` to get back). The embedding of "unknown" was never
# trained, so $\varepsilon_u$ is arbitrary and the guided estimate with it. At scale 1 the unconditional estimate
# cancels out of the formula; `guided_predict` does not even compute it.
#
# </details>
#
# ## At full scale
#
# - The denoiser of ReF-LDM has 118 million parameters and works on latents of 64 × 64 × 8 for pictures of 512 × 512; the
#   idea and even the code of the step are the ones above.
# - The published network predicts the noise $\varepsilon$, like ours in sections 5 to 10. The small ReF-LDM that ships with
#   the workbook predicts $v = \sqrt{\bar\alpha}\,\varepsilon - \sqrt{1-\bar\alpha}\,x_0$ instead (Salimans and Ho 2022). Both
#   numbers give the same pair $(\hat\varepsilon, \hat x_0)$, so process and sampler stay as they are. At large $t$ a small
#   error in $\hat\varepsilon$ is a huge one in $\hat x_0$; asked for $v$, a network with little training gets colours and
#   layout right much sooner.
# - Training takes hundreds of thousands of steps on several GPUs instead of seconds, and the loss curve looks just as
#   flat for most of that time.
# - The best possible loss is not known for photographs. What is left is to look at pictures and to measure on people the
#   network has never seen.
#
# ## References
#
# - J. Sohl-Dickstein, E. Weiss, N. Maheswaranathan, S. Ganguli: *Deep Unsupervised Learning using Nonequilibrium
#   Thermodynamics*, ICML 2015.
# - J. Ho, A. Jain, P. Abbeel: *Denoising Diffusion Probabilistic Models*, NeurIPS 2020.
# - J. Song, C. Meng, S. Ermon: *Denoising Diffusion Implicit Models*, ICLR 2021.
# - A. Nichol, P. Dhariwal: *Improved Denoising Diffusion Probabilistic Models*, ICML 2021.
# - T. Salimans, J. Ho: *Progressive Distillation for Fast Sampling of Diffusion Models*, ICLR 2022 (v-prediction).
# - J. Ho, T. Salimans: *Classifier-Free Diffusion Guidance*, 2022.
# - R. Rombach, A. Blattmann, D. Lorenz, P. Esser, B. Ommer: *High-Resolution Image Synthesis with Latent Diffusion
#   Models*, CVPR 2022.
# - T. Karras, M. Aittala, T. Aila, S. Laine: *Elucidating the Design Space of Diffusion-Based Generative Models*,
#   NeurIPS 2022.
# - T. Salimans, J. Ho: *Progressive Distillation for Fast Sampling of Diffusion Models*, ICLR 2022.
# - S. Lin, B. Liu, J. Li, X. Yang: *Common Diffusion Noise Schedules and Sample Steps are Flawed*, WACV 2024.
# - C.-W. Hsiao, Y.-L. Liu, C.-K. Yang, S.-P. Kuo, K. Jou, C.-P. Chen: *ReF-LDM: A Latent Diffusion Model for
#   Reference-based Face Image Restoration*, NeurIPS 2024.
# - G. J. Székely, M. L. Rizzo: *Energy statistics: A class of statistics based on distances*, Journal of Statistical
#   Planning and Inference, 2013.
