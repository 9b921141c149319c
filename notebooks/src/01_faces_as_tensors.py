# %% [markdown]
# # 01 · Faces as tensors
#
# Before a network can restore a face, the face has to be numbers, and everybody has to agree what the numbers mean. Many
# strange results in this field come from two programs that disagree about it. This notebook fixes the agreement, then
# introduces the people of this workbook. They are *drawn*: a renderer makes as many of them as we like, nobody's photo
# is needed, and for every picture we know exactly who it shows.
#
# **After this notebook you can**
# - state the image contract of this workbook and recognise the usual ways to break it,
# - compute PSNR and name a damage that it does not notice,
# - take a drawn person apart into *identity* (what stays) and *view* (what changes from photo to photo),
# - use the exact landmarks and face masks that come with each picture,
# - say what a face embedder measures, and how well one can tell two people apart.
#
# **You need** some Python. Words such as *tensor* and *cosine* are explained when they appear.

# %% tags=["parameters"]
profile = "toy"  # "toy": drawn faces at 128 px; "paper": the same notebook at 512 px
seed = 0  # every random number below follows from it
resolution = 128  # side of the pictures in pixels; 512 for the paper profile
people = 40  # how many people the embedders have to tell apart
photos_each = 3  # photos of each of them

# %%
import torch

from refbfr_core import metrics
from refbfr_core import notebook as nb
from refbfr_core.errors import ImageContractError
from refbfr_core.faces import IDENTITY_NAMES, LANDMARK_GROUPS, VIEW_NAMES, ToyFaces, Views
from refbfr_core.images import check_images, from_uint8, to_network, to_uint8

book = nb.start("01_faces_as_tensors", profile=profile, seed=seed)

toy = ToyFaces(resolution)
crowd = toy.identities(people, seed=seed, split="test")
album = toy.render(crowd, toy.views(crowd, photos_each, seed=seed))
photos = album.images.clone()  # (people, photos, 3, H, W)
face = photos[3, :1]  # one picture as a batch of one

# %% [markdown]
# ## 1 · The image contract
#
# A *tensor* is an array of numbers with several axes. In this workbook a batch of pictures is a tensor with four axes,
# `(B, 3, H, W)`: which picture, which colour, which row, which column. The numbers are 32-bit floats from 0 (no light) to
# 1 (full light), and the colours come in the order red, green, blue.

# %%
print("shape", tuple(face.shape), "| type", face.dtype, f"| values {float(face.min()):.3f} to {float(face.max()):.3f}")

channels = [face[0]] + [face[0, c : c + 1] for c in range(3)]
figure = nb.image_grid([[*channels, face[0, [2, 1, 0]]]], column_labels=["picture", "red", "green", "blue", "swapped"])
nb.show(figure, kind="jpg", alt="A drawn face; its red, green and blue parts as grey pictures; and the face with red and blue swapped, "
        "which makes the skin blue.")

# %% [markdown]
# The last picture shows the most common mistake: the image library OpenCV stores blue first. Nothing crashes; the skin
# is just blue, and a network that has never seen blue skin does something odd. Other usual mistakes are numbers from 0 to
# 255, numbers from −1 to 1 (what networks use inside), and axes in another order. Every door of this package checks for
# them and says what to do.

# %%
mistakes = {
    "bytes 0 to 255": to_uint8(face),
    "floats 0 to 255": face * 255,
    "range of networks": to_network(face),
    "colour axis last": face.permute(0, 2, 3, 1),
    "a single picture": face[0],
    "double precision": face.double(),
}
refused = 0
for name, wrong in mistakes.items():
    try:
        check_images(wrong)
    except ImageContractError as error:
        refused += 1
        print(f"{name}:\n    {error}")

# %% [markdown]
# Files store a picture as bytes, whole numbers from 0 to 255. Going there and back rounds every value to the nearest
# 255th: an error of at most half a step, invisible, but the reason why a saved picture is not *exactly* the picture you
# had.

# %%
there_and_back = from_uint8(to_uint8(face))
rounding = float((there_and_back - face).abs().max())
print(f"largest rounding error {rounding:.5f}, half a step is {0.5 / 255:.5f}")

# %% [markdown]
# ## 2 · How far apart are two pictures?
#
# The *mean squared error* averages the squared differences of all numbers. The *peak signal-to-noise ratio* puts it on
# a logarithmic scale, in decibels (dB), where more is better:
#
# $$\mathrm{PSNR} = -10\,\log_{10}\,\frac{1}{3HW}\sum_i (x_i - y_i)^2$$
#
# The peak is 1 because our pictures end at 1. 20 dB means a typical error of 10 % of the full range, 40 dB of 1 %.

# %%
def psnr(x, y):
    return -10 * torch.log10((x - y).square().flatten(1).mean(dim=1))


brighter = (face + 0.08).clamp(0, 1)
print("by hand       ", psnr(brighter, face).tolist())
print("refbfr_core   ", metrics.compute("psnr", brighter, face).tolist())
print(metrics.describe("psnr"))

# %% [markdown]
# PSNR knows nothing about faces. Below are four damages, each tuned so that PSNR is the same. Which one would you
# mind most?

# %%
def tuned(damage, target=24.0):
    """Find the strength at which a damage reaches the target PSNR, by halving an interval."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if float(psnr(damage(middle), face)) > target else (low, middle)
    return damage(low)


# %%
grain = torch.randn(face.shape, generator=torch.Generator().manual_seed(seed))
soft = face
for _ in range(4):
    soft = torch.nn.functional.avg_pool2d(soft, 9, stride=1, padding=4, count_include_pad=False)
stranger = photos[5, :1]
damages = {
    "brighter": tuned(lambda s: (face + s).clamp(0, 1)),
    "grain": tuned(lambda s: (face + s * grain).clamp(0, 1)),
    "blur": tuned(lambda s: face + s * (soft - face)),
    "a bit of a stranger": tuned(lambda s: face + s * (stranger - face)),
}
equal_psnr = {name: float(psnr(picture, face)) for name, picture in damages.items()}
figure = nb.image_grid(
    [[face[0], *[picture[0] for picture in damages.values()]]],
    column_labels=["original", *[f"{name}\n{equal_psnr[name]:.1f} dB" for name in damages]],
    cell=1.35,
)
book.save(figure, "01_equal_psnr", kind="jpg", alt="A face and four damaged versions with the same PSNR: a little brighter, grainy, "
          "blurred, and mixed with another person's face.")

# %% [markdown]
# To PSNR these four are equal. We need a measure that cares about *who* is in the picture; section 6 has one.
#
# ## 3 · Drawn people
#
# A photo of a person depends on two kinds of things. The **identity** is what stays: shape of the head, eyes, nose,
# skin, hair, moles. The **view** is what changes from photo to photo: direction of the head, expression, light,
# background, glasses. The renderer gets both as vectors of numbers from −1 to 1. Each row below is one person.

# %%
print(f"{len(IDENTITY_NAMES)} identity numbers, among them:", ", ".join(IDENTITY_NAMES[::9]))
print(f"{len(VIEW_NAMES)} view numbers, among them:", ", ".join(VIEW_NAMES[::4]))

sheet = toy.render(crowd[:5], toy.views(crowd[:5], 7, seed=seed + 1)).images.clone()
figure = nb.image_grid(sheet, row_labels=[f"person {i}" for i in range(5)], cell=0.7)
book.save(figure, "01_people_and_views", kind="jpg", max_bytes=50_000, alt="Five rows of seven drawn faces; each row shows one person in different poses, "
          "expressions, light and with or without glasses.")

# %% [markdown]
# ### One knob at a time
#
# Because identity and view are separate numbers, we can turn one and hold the rest. First some identity numbers, from −1
# to 1, on one person in a plain frontal view.

# %%
plain = Views(torch.zeros(1, 1, len(VIEW_NAMES))).replace(glasses=-1.0)
turns = [-1.0, -0.5, 0.0, 0.5, 1.0]


def turn_identity(person, name):
    return torch.cat([toy.render(person.replace(**{name: value}), plain).images[0] for value in turns]).clone()


def turn_view(person, name):
    return torch.cat([toy.render(person, plain.replace(**{name: value})).images[0] for value in turns]).clone()


who = crowd[7]
identity_knobs = ["head_width", "nose_width", "eye_spacing", "skin_tone", "age", "hair_tone"]
rows = [turn_identity(who, name) for name in identity_knobs]
figure = nb.image_grid(torch.stack(rows), row_labels=identity_knobs, column_labels=[f"{v:+g}" for v in turns], cell=0.7)
book.save(figure, "01_identity_knobs", kind="jpg", max_bytes=50_000, alt="Six rows of five faces: turning one identity number at a time makes the head wider, "
          "the nose broader, the eyes further apart, the skin darker, the person older and the hair another colour.")

# %% [markdown]
# Each of these pictures shows *another* person, similar to the one in the middle. Now some view numbers: always the same
# person.

# %%
view_knobs = ["yaw", "pitch", "smile", "light_azimuth", "exposure", "glasses"]
rows = [turn_view(who, name) for name in view_knobs]
figure = nb.image_grid(torch.stack(rows), row_labels=view_knobs, column_labels=[f"{v:+g}" for v in turns], cell=0.7)
book.save(figure, "01_view_knobs", kind="jpg", max_bytes=50_000, alt="Six rows of five faces of one person: the head turns sideways, then up and down, the mouth "
          "smiles, the light moves from one side to the other, the picture gets brighter, glasses appear.")

# %% [markdown]
# ## 4 · What no photo comes with: exact landmarks and masks
#
# The renderer knows where every point of the face lands in the picture. It returns 98 *landmarks* (outline, brows, eyes,
# nose, mouth; the numbering of the WFLW data set, Wu et al. 2018) and a *mask* of the face region. For photographs both
# have to be estimated, with errors.

# %%
figure, axes = nb.blank_figure(1, 4, cell_width=1.8, cell_height=1.8)
for ax, k in zip(axes[0], (0, 4, 7, 9)):
    ax.imshow(to_uint8(photos[k, :1])[0], interpolation="antialiased")
    points = album.landmarks[k, 0].clone()
    for members in LANDMARK_GROUPS.values():
        ax.plot(points[members, 0], points[members, 1], linestyle="none", marker=".", markersize=2)
    ax.contour(album.face_mask[k, 0, 0].clone(), levels=[0.5], colors="white", linewidths=0.8)
    ax.set(xticks=[], yticks=[])
nb.show(figure, kind="jpg", alt="Four drawn faces in different poses with coloured dots on outline, brows, eyes, nose and mouth, and a "
        "white line around the face region.")

# %% [markdown]
# With exact landmarks, the *landmark distance* (LMD: mean distance of corresponding points, in pixels) is exact too. How
# far do the points move when only the head turns?

# %%
def points_at(yaw):
    return toy.render(who, plain.replace(yaw=yaw)).landmarks[:, 0].clone()


frontal = toy.render(who, plain).images[0].clone()
moved = {
    yaw: float(metrics.compute("lmd", frontal, restored_landmarks=points_at(yaw), target_landmarks=points_at(0.0)))
    for yaw in (0.0, 0.1, 0.25, 0.5, 1.0)
}
nb.table(
    [{"yaw": f"{40 * yaw:.0f}°", "landmark distance (px)": value} for yaw, value in moved.items()],
    caption=f"Landmark distance to the frontal view, person 7, pictures of {resolution} px",
    digits=2,
)

# %% [markdown]
# ## 5 · Who is who: splits
#
# A network must be tested on people it has never seen. Otherwise it can score well by remembering. Here each *split* has
# its own stream of random numbers, so no person can be in two of them:
#
# - `train`: for the networks that restore, and for the *guide* embedder,
# - `judge`: for the *judge* embedder only,
# - `val`: to look at while developing,
# - `test`: what this workbook reports.
#
# Person number $i$ of a split depends on the split, the seed and $i$, and on nothing else.

# %%
splits = {name: toy.identities(200, seed=seed, split=name) for name in ("train", "judge", "val", "test")}
names = list(splits)
nearest = {
    (one, other): float(torch.cdist(splits[one].vector, splits[other].vector).min())
    for i, one in enumerate(names)
    for other in names[i + 1 :]
}
nb.table(
    [{"splits": f"{one} and {other}", "nearest pair": value} for (one, other), value in nearest.items()],
    caption="Distance of the two most similar identity vectors among 200 people of each split (0 would be a shared person)",
    digits=2,
)

# %% [markdown]
# ## 6 · What a face embedder measures
#
# An *embedder* is a network that maps a face to a list of some hundred numbers, a vector of length 1. It was trained so
# that photos of one person point in the same direction, and photos of different people do not (ArcFace, Deng et al.
# 2019). The *cosine* of two vectors of length 1 is their inner product: 1 for the same direction, about 0 for unrelated ones.
#
# The workbook has two of them, trained separately on different people: the **guide** may take part in training
# and in guiding a sampler; the **judge** only ever scores. A restorer that has been trained to please an embedder learns
# that embedder's weaknesses, so it must be judged by another one.

# %%
from refbfr_core.weights import load_network

embedders = {name: load_network(name, device=str(book.device)) for name in ("guide", "judge")}
for name, embedder in embedders.items():
    print(f"{name}: {embedder.config.embedding_dim} numbers, {sum(p.numel() for p in embedder.parameters()):,} parameters")


@torch.no_grad()
def cosines(embedder):
    """Cosines of all pairs of photos: (same person, different people)."""
    vectors = embedder.embed(to_network(photos.flatten(0, 1)).to(book.device)).cpu()
    owner = torch.arange(people).repeat_interleave(photos_each)
    one, other = torch.triu_indices(len(vectors), len(vectors), offset=1)
    all_pairs = (vectors[one] * vectors[other]).sum(dim=1)
    same = owner[one] == owner[other]
    return all_pairs[same], all_pairs[~same]


pairs = {name: cosines(embedder) for name, embedder in embedders.items()}

# %% [markdown]
# A useful summary is the *AUC*, the area under the curve: the chance that a random pair of the same person has a higher
# cosine than a random pair of different people. 1 is perfect, 0.5 is guessing.

# %%
from refbfr_core.benchmark import verification_auc

auc = {name: verification_auc(same, different) for name, (same, different) in pairs.items()}
figure, (axes,) = nb.blank_figure(1, 2, cell_width=3.4, sharey=True)
for ax, (name, (same, different)) in zip(axes, pairs.items()):
    nb.histograms(ax, {"same person": same, "different people": different}, xlabel="cosine")
    ax.set_title(f"{name}: AUC {auc[name]:.4f}")
book.save(figure, "01_same_or_different", people=people, photos_each=photos_each,
          alt="Two pairs of histograms, for guide and judge: cosines of photos of the same person lie high, those of different people "
          "around zero, with little overlap.")

# %% [markdown]
# Which photos confuse the judge? Here are its worst mistakes: the pair of the same person with the lowest cosine, and the
# pair of different people with the highest.

# %%
with torch.no_grad():
    vectors = embedders["judge"].embed(to_network(photos.flatten(0, 1)).to(book.device)).cpu()
similarity = vectors @ vectors.T
owner = torch.arange(people).repeat_interleave(photos_each)
together = owner[:, None] == owner[None]
lowest = int(torch.where(together, similarity, 2.0).argmin())
highest = int(torch.where(together, -2.0, similarity).argmax())
flat = photos.flatten(0, 1)
columns = []
for index in (lowest, highest):
    i, j = divmod(index, len(flat))
    columns.append(([flat[i], flat[j]], f"cosine {float(similarity[i, j]):.2f}"))
figure = nb.image_grid(
    [pair for pair, _ in columns], row_labels=[f"same person\n{columns[0][1]}", f"different people\n{columns[1][1]}"], cell=1.3
)
nb.show(figure, kind="jpg", alt="Upper row: two photos of one person that the judge finds least alike. Lower row: photos of two different "
        "people that it finds most alike.")

# %% [markdown]
# A good embedder follows identity numbers and ignores view numbers. We can test that directly with the knobs of section
# 3: turn one knob away from the middle and see how far the judge's cosine falls.

# %%
def fall(turn, name, members=(7, 3, 12)):
    """Mean cosine to the picture with the knob in the middle, for each position of the knob."""
    total = torch.zeros(len(turns), dtype=torch.float64)
    for k in members:
        pictures = turn(crowd[k], name)
        total += metrics.compute("ids", pictures, pictures[2:3].expand_as(pictures).contiguous(), embedder=embedders["judge"])
    return total / len(members)


curves = {name: fall(turn_identity, name) for name in ("head_width", "nose_width", "skin_tone", "hair_tone")}
view_curves = {name: fall(turn_view, name) for name in ("yaw", "smile", "light_azimuth", "glasses")}

# %%
figure, (axes,) = nb.blank_figure(1, 2, cell_width=3.4, sharey=True)
for ax, group, title in ((axes[0], curves, "identity numbers"), (axes[1], view_curves, "view numbers")):
    for name, values in group.items():
        ax.plot(turns, values, marker="o", label=name)
    ax.set(xlabel="position of the knob", title=title)
    ax.legend()
axes[0].set_ylabel("cosine to the middle (judge)")
book.save(figure, "01_judge_and_knobs", alt="Cosine to the middle position over the position of the knob. Left, for four identity numbers; "
          "right, for four view numbers.")

# %% [markdown]
# Read the plots before you trust the number: an identity number whose curve hardly falls (a small change of shape) can be
# restored wrongly without the judge noticing much, and a view number whose curve falls costs a score although the
# identity is right. Every identity score in this workbook, and in the papers, has this limit.
#
# ## Checks

# %%
nb.check(refused == len(mistakes), "every broken picture is refused", refused=refused)
nb.check_below(rounding, 0.5 / 255 + 1e-6, "bytes and back costs at most half a step")
nb.check_close(metrics.compute("psnr", brighter, face), psnr(brighter, face), 1e-3, "PSNR by hand equals the package's")
nb.check_below(max(equal_psnr.values()) - min(equal_psnr.values()), 0.1, "four different damages share one PSNR")
again = toy.render(crowd[7], toy.views(crowd[7], photos_each, seed=seed)).images[0]
nb.check(torch.equal(again, photos[7]), "a person drawn alone is the person drawn in the crowd, byte by byte")
nb.check_above(min(nearest.values()), 1.0, "no person is in two splits")
nb.check(moved[0.0] == 0 and moved[0.1] < moved[0.5] < moved[1.0], "landmarks move with the head", turned_by_40_degrees=moved[1.0])
for name in embedders:
    nb.check_above(auc[name], 0.98, f"the {name} tells people apart on split 'test', which it has never seen (AUC)")
apart = [float(1 - curves[name][[0, -1]].mean()) for name in ("skin_tone", "hair_tone")]
smile = float(1 - view_curves["smile"][[0, -1]].mean())
nb.check_above(max(apart), smile, "the judge reacts more to a change of person than to a smile")

# %% [markdown]
# ## Exercises
#
# **1.** Shift a face by one pixel to the right and compute PSNR and identity cosine. Which of the two is bothered?
#
# <details><summary>Solution</summary>
#
# ```python
# shifted = face.roll(1, dims=3)
# metrics.compute("psnr", shifted, face), metrics.compute("ids", shifted, face)
# ```
#
# PSNR falls as if the picture had been damaged visibly; the judge hardly notices. PSNR compares pixel by pixel, so it
# asks for exact alignment.
#
# </details>
#
# **2.** What does the judge say about the four damages with equal PSNR in section 2?
#
# <details><summary>Solution</summary>
#
# ```python
# for name, picture in damages.items():
#     print(f"{name:20} {float(metrics.compute('ids', picture, face)):.3f}")
# ```
#
# The numbers differ although PSNR is the same: brightness and grain cost next to nothing, the mixture with a stranger
# costs some, and blur costs most.
#
# </details>
#
# **3.** Draw a child of two people: average the identity vectors of two people and render it in three views. Is it more
# similar to its parents than they are to each other?
#
# <details><summary>Solution</summary>
#
# ```python
# from refbfr_core.faces import Identities
#
# parents = crowd[[3, 7]]
# family = Identities(torch.cat([parents.vector, parents.vector.mean(dim=0, keepdim=True)]))
# pictures = toy.render(family, toy.views(family, 3, seed=5)).images.clone()
# nb.show(nb.image_grid(pictures), kind="jpg", alt="Two drawn people and the person between them, in three views each.")
# ```
#
# Choices such as hair style are made by thresholds, so the child takes some features from one parent and mixes others.
# Compute the three cosines with `metrics.compute("ids", …)`.
#
# </details>
#
# ## At full scale
#
# - The papers work on photographs of 512 × 512, aligned by five or 68 detected landmarks (FFHQ alignment); here the
#   renderer aligns exactly. Real alignment errors cost identity scores, too.
# - Real identity labels are noisy: data sets group photos by the cosine of an embedder, so the embedder's own mistakes
#   enter the data. Here identity is known.
# - Embedders for photographs (ArcFace) know millions of photos of real people, who were rarely asked. The drawn people of
#   this workbook do not exist; skin tones are sampled evenly over the Monk scale, which photo collections do not do.
#
# ## References
#
# - J. Deng, J. Guo, N. Xue, S. Zafeiriou: *ArcFace: Additive Angular Margin Loss for Deep Face Recognition*, CVPR 2019.
# - W. Wu, C. Qian, S. Yang, Q. Wang, Y. Cai, Q. Zhou: *Look at Boundary: A Boundary-Aware Face Alignment Algorithm*,
#   CVPR 2018 (the 98 landmarks of WFLW).
# - E. Wood, T. Baltrušaitis, C. Hewitt, S. Dziadzio, T. J. Cashman, J. Shotton: *Fake It Till You Make It: Face Analysis
#   in the Wild Using Synthetic Data Alone*, ICCV 2021.
# - E. Monk: *The Monk Skin Tone Scale*, 2019.
# - Z. Wang, A. C. Bovik: *Mean Squared Error: Love It or Leave It?*, IEEE Signal Processing Magazine, 2009.
