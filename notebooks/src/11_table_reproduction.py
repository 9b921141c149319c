# %% [markdown]
# # 11 · Table reproduction
#
# The last notebook of the series does what the first eleven prepared: it runs the tables. On drawn faces you run all methods of this
# workbook, live, at three severities, with the right references, wrong ones and none. On the way you kill the run, feed it damaged
# pictures and a method that returns nonsense, and look at what becomes of the numbers. Then the recorded run with more people, what
# can be concluded from it, and the printed tables of the four papers with everything that can be set beside them.
#
# **After this notebook you can**
# - run a table, kill it, go on with it, and be sure that this changed nothing,
# - say what happens to a damaged picture, a missing reference, and a method that fails, and why none of them may vanish,
# - bring in your own method as a folder of pictures,
# - read a table with intervals: who is best, and who cannot be told from the best,
# - find every printed number of the four papers, and what keeps it from being reproduced,
# - start the same tables on photographs, on one GPU or on many.
#
# **You need** notebook 10 (what makes a comparison fair). The methods are those of notebooks 00 and 03 to 09.

# %% tags=["parameters"]
profile = "toy"  # "paper" for tables on photographs
seed = 0  # every random number below follows from it
table = "toy"  # or any table of section 6, with the profile "paper"
people = 2  # drawn people of the live run, so that there is a wrong person
processes = 2  # that share the work; with GPUs one for each
roots = {}  # dataset -> folder, for tables on photographs, such as {"ffhq-ref-severe": "FFHQ_REF"}
results = {}  # name -> folder of restored pictures that are scored with the others
limit = 1  # of the live run: so many pictures of every dataset, None for all; the recorded run has more
out = None  # folder of the run, where a later call goes on; None: a new one that is deleted at the end
kill_after = 5  # rows after which the run is killed
recordings = None  # folder of other recordings than the package's own

# %%
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
from IPython.display import display

from refbfr_core import notebook as nb
from refbfr_core.benchmark import published, recorded
from refbfr_core.benchmark import recordings as recording_names
from refbfr_core.benchmark.tables import TABLES, Arm, TableReport, drawn_dataset, run_table, table_spec
from refbfr_core.benchmark.tables.restorers import Restorer, build_restorer, folder_restorer
from refbfr_core.benchmark.tables.results import picture_path
from refbfr_core.images import read_image, write_image
from refbfr_core.notebook import table_cells as cells
from refbfr_core.notebook import table_figures as figures
from refbfr_core.notebook.pdgrad_figures import ends

# %%
book = nb.start("11_table_reproduction", profile=profile, seed=seed)
spec = table_spec(table)
scratch = tempfile.TemporaryDirectory()
folder = Path(out) if out else Path(scratch.name) / "run"
print(f"{spec.name}: {spec.title}")
print(f"{len(spec.arms)} arms: {'; '.join(map(str, spec.arms))}")
print(f"{len(spec.dataset_names)} datasets: {', '.join(spec.dataset_names)}; scores: {', '.join(spec.metric_names)}; of sets: {', '.join(spec.set_metrics)}")

# %% [markdown]
# ## 1 · A run that is killed
#
# A *row* is one picture restored by one arm, with its scores. A big table has a hundred thousand of them and takes days, and in days
# something happens: power, a queue that ends, a full disk. So every row is written as soon as it is there, in one step, under a
# **key**: the hash of everything that decides it.
#
# $$\text{key} = \mathrm{SHA256}(\text{picture},\ \text{noise seed},\ \text{arm},\ \text{settings},\ \text{weights},\ \text{scores},\ \text{code})$$
#
# Whoever has the same key has the same row. A run that is started again looks which keys are there and does the rest; if you change a setting, or the
# code, other keys are asked for, and old rows cannot slip in. We start the table from the command line, as you would, and
# kill it without warning (`kill -9`) as soon as a few rows are there:

# %%
command = [sys.executable, "-m", "refbfr_core.cli", "table", table, "--out", str(folder), "--people", str(people), "--seed", str(seed), "--pictures", "--quiet"]
command += [text for name, place in roots.items() for text in ("--root", f"{name}={place}")] + [text for name, place in results.items() for text in ("--results", f"{name}={place}")]
command += ["--limit", str(limit)] if limit else []
began = time.perf_counter()
with subprocess.Popen([*command, "--processes", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
    while running.poll() is None and len(cells.kept_rows(folder)) < kill_after:
        time.sleep(0.2)
    running.kill()
before = cells.kept_rows(folder)
print(f"killed after {time.perf_counter() - began:.0f} s, exit status {running.returncode}: {len(before)} rows are on disk, no table yet: {not (folder / 'rows.parquet').exists()}")

# %% [markdown]
# The same command again, now with two processes. They look which keys are there and share the rest through *accelerate*, which does the same for
# GPUs and for several machines.

# %%
began = time.perf_counter()
finished = subprocess.run([*command, "--processes", str(processes)], capture_output=True, text=True, check=False)
seconds = time.perf_counter() - began
print(f"exit status {finished.returncode} (1 would mean that rows failed or datasets are missing); {seconds:.0f} s with {processes} processes")
print("\n".join(finished.stdout.splitlines()[:6]))

# %% [markdown]
# The result is files: rows and times as Parquet, the settings with what could not be run or measured as JSON, a report in five formats, and the
# restored pictures.

# %%
rows, times = pd.read_parquet(folder / "rows.parquet"), pd.read_parquet(folder / "times.parquet")
about = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
print(f"{len(rows)} rows, {int((rows.status == 'failed').sum())} failed; not run: {about['not_run'] or 'nothing'}")
print("\n".join(line for line in finished.stderr.splitlines() if line.startswith("not ")) or "nothing is missing")
print("files: " + ", ".join(sorted(path.relative_to(folder).as_posix() for path in [*folder.glob("*.*"), *folder.glob("report/*")])))

# %% [markdown]
# Did the kill change anything? The rows from before must still be there, and they must be what an undisturbed run makes. We make some of them anew,
# in one process, in memory, with no folder to read from:

# %%
shown = list(dict.fromkeys(rows["dataset"]))
kept_before = rows[rows.key.isin(before.key)]
again = {(r["dataset"], r.system, r.references) for _, r in kept_before.iterrows()}
fresh = None
if spec.profile == "toy":
    some = [Arm(system, references) for system, references in dict.fromkeys((system, references) for _, system, references in again)][:4]
    drawn = drawn_dataset(shown[0].removeprefix("drawn-"), people, seed=seed)
    fresh = run_table([replace(drawn, items=drawn.items[:limit])], some, spec.metric_names, progress=False).rows
    same = fresh.merge(rows, on="key", suffixes=("", " killed"))
    gap = max(float((same[name] - same[f"{name} killed"]).abs().max()) for name in spec.metric_names)
    print(f"{len(kept_before)} rows survived the kill; {len(same)} rows made again without one: largest difference of any score {gap:g}")

# %% [markdown]
# ## 2 · The table
#
# Live, with very few pictures. An interval from so few would be a lie: resampling two people knows three different means. So beside these numbers stand
# no intervals, and nothing follows from them yet; section 5 has more people. Scores: *psnr* and *lpips-toy* compare with the truth, *ids* asks the
# judge for the person, *niqe-toy* looks at the picture alone (notebook 10).

# %%
report = TableReport(rows, times, spec=spec, not_run=about["not_run"], unmeasured=about["unmeasured"])
frame = report.frame()
shown_scores = [name for name in ("psnr", "lpips-toy", "lpips", "ids", "niqe-toy", "niqe") if name in rows]
for dataset in shown:
    display(nb.table(cells.measured_table(frame, dataset, shown_scores, 3), caption=f"{dataset}: {rows[rows['dataset'] == dataset].group.nunique()} people, means" + (" ± half of the 95 % interval" if rows.group.nunique() >= cells.LEAST_PEOPLE else "")))

# %%
arms = [(arm.system, arm.references, str(arm)) for arm in spec.arms if (folder / "pictures").is_dir()]
gallery, row_names = [], []
for dataset in shown:
    for item in list(dict.fromkeys(rows[rows["dataset"] == dataset]["item"]))[:2]:
        paths = [picture_path(folder, dataset, label, item) for label in (*(name for *_, name in arms), "truth", "reference")]
        gallery.append([read_image(path)[0] if path.is_file() else None for path in paths])
        row_names.append(f"{dataset.removeprefix('drawn-')}\n{item}")
headings = [name.replace(", ", "\n").replace(" network", "\nnetwork") for *_, name in arms] + ["truth", "a photo"]
figure = nb.image_grid(gallery, row_labels=row_names, column_labels=headings, cell=0.72)
book.save(figure, "11_grid", kind="jpg", max_bytes=150_000, table=table, people=people,
          alt="Drawn people at three severities in rows; every arm of the table in columns, from the ruined input to the truth and a reference photo.")

# %% [markdown]
# Nobody was chosen: these are the first of the list. Look along a row of *severe*: who invents, who stays soft, whose face changes
# when the photos are somebody else's?
#
# ### What a picture costs

# %%
figure = figures.time_figure(times)
book.save(figure, "11_times", max_bytes=26_000, processes=processes, alt=figures.time_alt(times))

# %% [markdown]
# ## 3 · Faults
#
# A table is only as honest as its handling of failures. A script that catches an exception and saves the *input* as the result (some do), or that skips
# a picture, makes the method look better (notebook 10). Here a fault of a picture or of a method becomes a **row** with status *failed* and a reason; it is
# counted, it enters no mean, and it ends nothing. We inject five of them:

# %%
small = drawn_dataset("severe", 4, seed=seed)
damaged = Path(scratch.name) / "damaged.png"
write_image(damaged, small.items[0].load().truth)
damaged.write_bytes(damaged.read_bytes()[:900])


def without_references(item):
    return replace(item, digest="0" * 16, load=lambda: replace(item.load(), right=None))


def broken_picture(item):
    return replace(item, digest="1" * 16, load=lambda: replace(item.load(), lq=read_image(damaged)))


faulty = replace(small, items=(small.items[0], without_references(small.items[1]), broken_picture(small.items[2]), small.items[3]))

# %%
def raises_on_the_last(lq, references, seeds, names):
    if names[0].endswith(faulty.items[3].name):
        raise RuntimeError("out of memory")
    return lq.clone()


inventions = {
    "NaN": Restorer("NaN", lambda lq, references, seeds, names: lq / 0 * 0, {}, "a" * 12),
    "overshoots": Restorer("overshoots", lambda lq, references, seeds, names: lq * 1.5, {}, "b" * 12),
    "raises": Restorer("raises", raises_on_the_last, {}, "c" * 12),
}
refldm = {"ReF-LDM": build_restorer("ReF-LDM")}
arms_under_test = [Arm("Input"), Arm("ReF-LDM", "right"), *(Arm(name) for name in inventions)]
faults = run_table([faulty], arms_under_test, ["psnr", "ids"], restorers=inventions | refldm, progress=False)
nb.table([{"picture": r["item"], "arm": f"{r.system}{'' if r.references == 'none' else ', ' + r.references}", "status": r.status, "reason": r.reason.replace(scratch.name, "…")[:150], "psnr": r.psnr} for _, r in faults.rows.iterrows()],
         caption="Four pictures (the second without references, the third damaged) and three bad methods", digits=2)

# %%
counted = TableReport(faults.rows).frame().drop_duplicates("arm")
print("\n".join(f"{r.arm}: {r.n} scored, {r.failed} failed" for r in counted.itertuples()))

# %% [markdown]
# ## 4 · Your own method: a folder
#
# Any system, whatever it is written in, comes into the table as a folder with one picture for each item, by the item's name: `refbfr table toy --results
# NAME=FOLDER`. We take ReF-LDM's pictures as if somebody had sent them, lose one, and replace another by the ruined input, as scripts do when
# they cannot find a face:

# %%
people_here = small
sent = Path(scratch.name) / "sent"
theirs = run_table([people_here], [Arm("ReF-LDM", "right")], ["psnr", "ids"], restorers=refldm, out=Path(scratch.name) / "theirs", pictures=True, progress=False)
for item in people_here.items[:3]:
    write_image(sent / f"{item.name}.png", read_image(picture_path(theirs.pictures, people_here.name, "ReF-LDM, right", item.name)))
write_image(sent / f"{people_here.items[2].name}.png", people_here.items[2].load().lq)
guest = run_table([people_here], [Arm("Guest")], ["psnr", "ids"], restorers={"Guest": folder_restorer("Guest", sent)}, progress=False)
beside = guest.rows.assign(sender=theirs.rows.psnr.to_numpy())
nb.table([{"picture": r["item"], "status": r.status, "psnr": r.psnr, "psnr at the sender's": r.sender, "reason": r.reason.replace(scratch.name, "…")[:170]} for _, r in beside.iterrows()],
         caption="A folder of results, scored under the same protocol; the sender's scores are those before the pictures were rounded to 8 bits", digits=4)

# %% [markdown]
# ## 5 · More people
#
# What one or two people cannot show, more can. The toy table was run with more of them, and its rows are kept with the package together with what made
# them. `*` is the best mean; `~` cannot be told from the best: the interval of the paired difference contains 0, with all intervals of a column
# widened until they hold together.

# %%
name = "toy-table"
recording = recorded(name, recordings) if name in recording_names(recordings) else None
many = rows if recording is None else cells.recorded_rows(recording)
print(recording if recording is not None else "no recorded run of the toy table is here; what follows is about the live one, with its few people")
large = TableReport(many, spec=table_spec("toy") if recording is not None else spec)
wide = large.frame()
n_people = int(many.group.nunique())
severities = list(dict.fromkeys(many["dataset"]))
print(f"{n_people} people, {len(many)} rows, {int((many.status != 'ok').sum())} failed")

# %%
telling = [each for each in ("psnr", "lpips-toy", "lpips", "ids", "niqe-toy", "niqe", "textures") if each in many]
for dataset in severities:
    display(nb.table(cells.measured_table(wide, dataset, telling, 3), caption=f"{dataset}, {n_people} people: " + ("mean ± half of the 95 % interval; * best, ~ not distinguishable from the best" if n_people >= cells.LEAST_PEOPLE else "means")))

# %% [markdown]
# ### Perception, distortion, identity

# %%
across, up = figures.first_of(wide, figures.DISTORTION), figures.first_of(wide, figures.PERCEPTION)
figure = figures.plane_figure(wide, across, up, {each: each for each in severities})
book.save(figure, "11_plane", max_bytes=75_000, people=n_people, recorded=recording.about["date"] if recording else "live", alt=figures.plane_alt(wide, across, up))

# %%
identity = figures.first_of(wide, figures.IDENTITY)
figure = figures.plane_figure(wide, up, identity, {each: each for each in severities})
book.save(figure, "11_identity", max_bytes=75_000, people=n_people, recorded=recording.about["date"] if recording else "live", alt=figures.plane_alt(wide, up, identity))

# %% [markdown]
# Full markers have the person's own photos, half-filled ones somebody else's, open ones none. In the first figure the lower right corner is the best one, in the second
# the upper left. How far apart are the three markers of one system, in identity and in the other two scores?
#
# ### What can be concluded

# %%
if n_people < cells.LEAST_PEOPLE:
    print(f"nothing: {n_people} people are too few, see the next cells for what could be asked")
for dataset in severities if n_people >= cells.LEAST_PEOPLE else ():
    for metric in (across, identity, up):
        own = wide[(wide["dataset"] == dataset) & (wide.metric == metric) & wide.measured.notna()]
        tied = [r.arm for r in own.itertuples() if r.verdict.startswith("not")]
        print(f"{dataset}, {metric}: best {own[own.best].arm.iloc[0]}; {'not distinguishable: ' + ', '.join(tied) if tied else 'all others are distinguishable'} ({len(own)} arms)")

# %%
takers = [system for system in dict.fromkeys(arm.system for arm in spec.arms) if {"right", "wrong"} <= set(many[many.system == system].references)]
lines = []
for dataset in severities:
    for system in takers:
        alone = "LDM" if system == "ReF-LDM" and "LDM" in set(many.system) else f"{system}, none"
        found = {what: cells.arm_difference(many, dataset, identity, f"{system}, {kind}", other) for what, kind, other in (("right − none", "right", alone), ("wrong − none", "wrong", alone), ("right − wrong", "right", f"{system}, wrong"))}
        lines.append({"dataset": dataset, "system": system, **{what: "–" if interval is None else ends(interval) for what, interval in found.items()},
                      "photos help": "–" if found["right − none"] is None else "yes" if found["right − none"].above() else "no, they harm" if found["right − none"].below() else "open"})
nb.table(lines, caption=f"What references change in {identity}: paired differences over {n_people} people with 95 % intervals (none for ReF-LDM: LDM)")

# %%
for dataset in severities:
    restored = [arm for arm in wide[wide["dataset"] == dataset].arm.unique() if arm != "Input"]
    versus = {arm: cells.arm_difference(many, dataset, identity, arm, "Input") for arm in restored}
    count = {word: sum(each is not None and test(each) for each in versus.values()) for word, test in (("better", lambda i: i.above()), ("worse", lambda i: i.below()))}
    print(f"{dataset}, {identity}: of {len(restored)} arms {count['better']} show the person better than the unrestored picture does, {count['worse']} worse, the others cannot be told")

# %% [markdown]
# The lighter the damage, the more a restoration can spoil: where the ruined picture still shows who it is, every method that draws a face anew has
# something to lose. Do the scores at least agree on the order of the methods?

# %%
from itertools import combinations

scales = [metric for metric in (across, identity, up) if metric]
ranks = {metric: wide[(wide.metric == metric) & (wide["dataset"] == severities[-1])].set_index("arm").measured.rank(ascending=wide[wide.metric == metric].direction.iloc[0] == "lower") for metric in scales}
for one, other in combinations(scales, 2):
    print(f"{severities[-1]}: rank correlation of the arms between {one} and {other}: {ranks[one].corr(ranks[other]):+.2f}")

# %% [markdown]
# If the orders agreed, one score would do. What such a table can *not* say: the networks behind the arms are small ones, trained for minutes to hours; an order here is
# one of these copies on drawn faces. Some were trained on one range of degradations and some on another (the notes of the table
# say which), and one of the scores, lpips-toy, uses a network that some of them were trained or guided with. It is a table about *measuring*.
#
# ## 6 · The papers' tables
#
# Every number that the four papers print belongs to one of these tables. *Runs here* counts arms that need the authors' weights only; the others come
# from folders of results; tables without arms hold settings, users' opinions or networks that nobody released, and can only be printed.

# %%
printed = published()
gpu = {each: recorded(f"table-{each}", recordings) for each in TABLES if f"table-{each}" in recording_names(recordings)}
nb.table([{"table": each.name, "title": each.title, "numbers": int((printed.paper.eq(each.paper) & printed.table.isin(each.published_tables)).sum()), "runs here": len(each.runnable) if each.measured else "–",
           "from folders": len(each.from_folders) if each.measured else "–", "recorded": str(gpu[each.name]) if each.name in gpu else "–"} for each in TABLES.values() if each.paper],
         caption=f"{len(printed)} published numbers in {sum(bool(each.paper) for each in TABLES.values())} tables")

# %%
if gpu:
    print("\n".join(f"table-{each}: {found}" for each, found in gpu.items()))
else:
    print("no recorded GPU result in this repository: the column 'measured' below is empty, and nothing is invented for it")

# %% [markdown]
# Each cell: published | measured | difference. Where a run on photographs was recorded, its means stand in the middle, with n and intervals in the report that
# `refbfr table` writes.

# %%
reports = {}
for each in TABLES.values():
    if each.paper and each.measured:
        own = cells.recorded_rows(gpu[each.name]) if each.name in gpu else None
        reports[each.name] = TableReport(own, spec=each)
        lines = cells.paper_table(reports[each.name].frame())
        if lines:
            display(nb.table(lines, caption=f"{each.name} · {each.title}: published | measured | difference"))
        else:
            print(f"{each.name} · {each.title}: no printed number is known")

# %% [markdown]
# ### The discrepancy log
#
# Before a number is compared, one should know what speaks against it: contradictions in print, protocols that differ or are not stated, another number of
# pictures, failures, and, after a run, published numbers outside of the measured interval. Counted for all tables, and in full for one:

# %%
logs = {each: one.discrepancies() for each, one in reports.items()}
kinds = ("paper", "protocol", "value", "count", "failures")
nb.table([{"table": each, **{kind: int((log.kind == kind).sum()) for kind in kinds}} for each, log in logs.items()],
         caption="Entries of the discrepancy logs: inconsistent in print, measured differently, outside the interval, another count, failures")

# %%
chosen = table if table in logs else "refldm-results"
for kind, own in logs[chosen].groupby("kind", sort=False):
    for what in own.what.head(6):
        print(f"{kind}: {what}")

# %% [markdown]
# ## Checks

# %%
no_kill = spec.profile != "toy" or (len(same) >= len(some) and gap == 0)
expected_rows = len(spec.arms) * sum(rows.drop_duplicates(["dataset", "item"])["dataset"].value_counts())
statuses = faults.rows.set_index(["item", "system"]).status
items = [item.name for item in faulty.items]
cells_found = sum(len(one.frame()) for one in reports.values())
if out is None:
    scratch.cleanup()

# %%
nb.check(len(before) >= min(kill_after, len(rows)) and set(before.key) <= set(rows.key), "rows that were finished before the kill are in the table", rows=len(before))
nb.check(no_kill, "an undisturbed run makes the same rows, bit for bit", rows=len(same) if fresh is not None else 0)
nb.check(spec.profile != "toy" or (len(rows) == expected_rows and not about["not_run"]), "every arm has a row for every picture", rows=len(rows))
nb.check(rows.key.is_unique, "no row is there twice")
nb.check(all(statuses[item, "NaN"] == "failed" for item in items), "NaN is a failure on every picture, never a score")
nb.check(statuses[items[1], "ReF-LDM"] == "failed" and statuses[items[1], "Input"] == "ok", "a missing reference fails the arm that needs it, and no other")
nb.check(all(statuses[items[2], system] == "failed" for system in ("Input", "ReF-LDM")), "a damaged picture fails for every arm")
nb.check(statuses[items[3], "raises"] == "failed" and statuses[items[0], "raises"] == "ok", "a method that raises once fails once")
nb.check(faults.rows[faults.rows.status == "failed"][["psnr", "ids"]].isna().all(axis=None), "no failed row has a score")
nb.check(list(guest.rows.status) == ["ok", "ok", "failed", "failed"], "of a folder's pictures an unchanged input and a missing one are failures")
nb.check_close(guest.rows.psnr[:2], theirs.rows.psnr[:2], 0.02, "the others score as at the sender's, up to 8-bit rounding")
nb.check(recording is None or n_people >= 24, "a recorded run has at least 24 people", people=n_people)
nb.check(set(wide[wide.best].groupby(["dataset", "metric"]).size()) == {1}, "every score names one best arm")
nb.check(len(printed) == sum(int((printed.paper.eq(each.paper) & printed.table.isin(each.published_tables)).sum()) for each in TABLES.values() if each.paper), "every published number belongs to exactly one table", numbers=len(printed))
nb.check_above(cells_found, 100, "the papers' measurable cells are all shown")
nb.check(out is not None or not folder.exists(), "the folder of this run is gone, or was asked for")

# %% [markdown]
# ## Exercises
#
# **1.** Change one setting of one method, say PDGrad's number of steps, and run two rows again. Which keys change, and which rows are reused?
#
# <details><summary>Solution</summary>
#
# ```python
# from refbfr_core.benchmark.tables import build_restorer
#
# few = drawn_dataset("severe", 2, seed=seed)
# arms_here = [Arm("Input"), Arm("PDGrad", "right")]
# usual = run_table([few], arms_here, ["psnr"], progress=False).rows
# faster = run_table([few], arms_here, ["psnr"], restorers={"PDGrad": build_restorer("PDGrad", num_inference_steps=10)}, progress=False).rows
# print(usual.assign(same=usual.key.isin(faster.key))[["system", "item", "same", "psnr"]], faster.psnr.tolist())
# ```
#
# The keys of *Input* stay, those of PDGrad change, because the settings are part of them. With `out=` the rows of *Input* would not have been computed again.
#
# </details>
#
# **2.** A method refuses one picture in four, the hardest. How does the table show it, and which numbers can still be compared?
#
# <details><summary>Solution</summary>
#
# ```python
# dataset = severities[-1]
# hard = many[(many["dataset"] == dataset) & (many.system == "Input")].sort_values(identity)["item"].head(max(1, n_people // 4))
# holed = many[many["dataset"] == dataset].copy()
# fails = (holed.system == "DifFace") & holed["item"].isin(set(hard))
# holed.loc[fails, ["status", "reason"]] = ["failed", "refused"]
# holed.loc[fails, telling] = float("nan")
# for found in (many, holed):
#     lines = cells.measured_table(TableReport(found).frame(), dataset, [identity], 3)
#     print(next(line for line in lines if line["arm"] == "DifFace"))
# ```
#
# Its mean identity rises; *failed* says why; the comparison with the best is over the pictures that both restored.
#
# </details>
#
# **3.** Write the recorded table as LaTeX, with its notes, as you would put it into a paper.
#
# <details><summary>Solution</summary>
#
# ```python
# print(large.latex())
# ```
#
# Protocols, n and failures are part of what is printed. Leave them in.
#
# </details>
#
# ## At full scale
#
# - **On photographs.** Get a data set (`refbfr datasets list` says where, and under which licence), the weights (`refbfr weights get NAME`), then
#
#   ```
#   refbfr table refldm-results --root ffhq-ref-severe=FFHQ_REF --results VQFR=FOLDER --out runs/refldm-results
#   ```
#
#   or this notebook with other parameters: `papermill 11_table_reproduction.ipynb done.ipynb -p profile paper -p table refldm-results -y "{roots: {ffhq-ref-severe: FFHQ_REF}}" -p out runs/refldm-results -p processes 1`.
# - **On many GPUs.** `--processes 8` gives each process a GPU of this machine. On several machines start the same command on each with `accelerate launch --num_machines
#   2 --machine_rank 0 --main_process_ip … -m refbfr_core.cli table refldm-results …`; all must see the same folder `--out`.
# - **FID.** `--sets` keeps all pictures and measures FID or KID at the end, against what `--reference-set` names. The test sets are smaller than Inception's 2,048 features,
#   so printed numbers can only be measured again at their own $n$ (`--allow-small`).
# - **What cannot be reproduced.** PDGrad's, LD-BFR's and DiffMAC's authors released no weights; versions of baselines are not named; PDGrad's pairs of pictures
#   were drawn at random and are not published. The discrepancy log of every table says so.
# - Recorded GPU results (`table-NAME` among the recordings) appear in section 6 by themselves, with the machine, the date and the command that made them.
#
# ## References
#
# - C.-W. Hsiao et al.: *ReF-LDM: A Latent Diffusion Model for Reference-based Face Image Restoration*, NeurIPS 2024.
# - *PDGrad*, Sensors 2024, 24(22), 7112.
# - Y. Du et al.: *LD-BFR: Vector-Quantization-Based Face Restoration Model with Latent Diffusion Enhancement*, ACM MM 2024.
# - N. Gao et al.: *DiffMAC: Diffusion Manifold Hallucination Correction for High Generalization Blind Face Restoration*, arXiv 2403.10098.
# - S. Gugger et al.: *Accelerate*, https://github.com/huggingface/accelerate (processes, GPUs and machines).
# - S. Samuel, D. Mietchen: *Computational reproducibility of Jupyter notebooks from biomedical publications*, GigaScience, 2024.
