"""What the notebooks share: where they look, and the plots that take more than a few lines.

A plot takes arrays, as the library's readers give them, and `who` they are of, for its title. It returns a matplotlib
figure, which a cell that ends with it shows.
"""
import io
import os
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np

from utils import images, layout, plotting
from utils.errors import Problem
from utils.nsd import atlases, s3
from utils.plotting import plt
from utils.report import figures
from utils.storage import run_records, text_files

SIMULATED_KEY = "SIMULATED.txt"  # what mini_nsd puts at the root of a simulated data set
DPI = 110
TILE = 1.05  # inches, a picture
SLICES = 4  # of the volume
STRIP = 40  # voxels


# where a notebook looks


def start(subject, workdir=None):
    """(Workspace, NSD's Root, the subject's name in titles), as the scripts have them from --workdir and NSD_ROOT.

    workdir: what was the scripts' --workdir; by default the environment's WORKDIR, or else what `make demo` left, with
    its simulated NSD and its small models. Paths count from the repository's root, as the scripts' do: it becomes the
    working directory. Raises Problem, told in one line in a notebook, where nothing of the subject is there.
    """
    _show()
    world, work = layout.demo()
    os.chdir(world.parent.parent)
    workdir = workdir or os.environ.get("WORKDIR")
    if not workdir:
        if Path(os.environ.get("NSD_ROOT") or world).resolve() != world.resolve():
            raise Problem("NSD_ROOT is set, but not the folder of what was made from it",
                          "set WORKDIR to the scripts' --workdir, or unset NSD_ROOT to see the demo's")
        workdir = work
        if not world.is_dir():
            raise Problem(f"{world} is missing", "run `make demo`, or set WORKDIR to the scripts' --workdir")
        os.environ["NSD_ROOT"] = str(world)
        os.environ.setdefault("NSD_MODELS", "tiny")
    ws = layout.Workspace(Path(workdir), subject)
    if not ws.stims.exists():
        raise Problem(f"{ws.stims} is missing", "run `make demo`, or set WORKDIR to the scripts' --workdir")
    root = s3.Root.from_env()
    return ws, root, run_records.who(ws, run_records.is_simulated(ws) or root.exists(SIMULATED_KEY))


def _show():
    """Plot in the figures' style. A notebook shows a figure as a PNG that its title describes, a Problem as a line."""
    plt.rcParams.update(plotting.STYLE)
    warnings.filterwarnings("ignore", message="IProgress not found")  # of tqdm, which then draws its bars as text
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is not None:
        shell.display_formatter.formatters["image/png"].for_type(plt.Figure, _png)
        shell.set_custom_exc((Problem,), lambda shell, kind, problem, trace, tb_offset=None:
                             print(f"error: {problem}", file=sys.stderr))


def _png(figure):
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.08)
    return content.getvalue(), {"alt": figure.get_suptitle()}


def sessions(ws):
    """The sessions that make_subjmri.py used."""
    return text_files.read_json(layout.sidecar(ws.stims))["options"]["sessions"]


# plots


def _plot(rows, columns, width, height, title, who, **more):
    """(figure, axes). The figure is not pyplot's: nothing has to be closed."""
    figure = plt.Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **more)
    figure.suptitle(textwrap.fill(f"{title}, {who}", int(13 * width)), x=0.01, ha="left", fontsize=9, fontweight="bold")
    return figure, axes


def _bare(axis):
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def pictures(rows, names, labels, title, who):
    """A grid of pictures. rows: of n pictures each, (H, W, 3) or, from black to white, (H, W); names: of the rows;
    labels: n lines below the first row."""
    count = len(rows[0])
    figure, axes = _plot(len(rows), count, 0.9 + TILE * count, 0.5 + (TILE + 0.1) * len(rows) + 0.3, title, who)
    for line, (row, name) in enumerate(zip(rows, names, strict=True)):
        for axis, picture, label in zip(axes[line], row, labels, strict=True):
            axis.imshow(picture, cmap="gray")
            _bare(axis)
            if line == 0:
                axis.set_xlabel(label, fontsize=6.5)
        axes[line, 0].set_ylabel(textwrap.fill(name, 16), rotation=0, ha="right", va="center", fontsize=7)
    return figure


def regions(atlas, volume, who):
    """The atlas's ROIs on axial slices of a volume of responses. atlas: nsd.Atlas; volume (z, y, x)."""
    inside = np.flatnonzero((atlas.labels > 0).any(axis=(1, 2)))
    shown = inside[plotting.evenly(len(inside), SLICES + 2)][1:-1] if len(inside) > SLICES + 2 else inside
    title = f"ROIs of {Path(atlas.keys[0]).name} on one trial's responses"
    figure, axes = _plot(1, len(shown), plotting.WIDTH, 2.9, title, who)
    colours = plt.get_cmap("tab10" if len(atlas.values) <= 10 else "turbo", max(10, len(atlas.values)))
    place = {label: number for number, label in enumerate(atlas.values.values())}
    low, high = np.percentile(volume[volume != 0], (2, 98))
    for axis, z in zip(axes[0], shown):
        axis.imshow(volume[z], cmap="gray", vmin=low, vmax=high, origin="lower")
        numbers = np.vectorize(place.get, otypes=[float])(atlas.labels[z], np.nan)
        axis.imshow(numbers, cmap=colours, vmin=-0.5, vmax=colours.N - 0.5, alpha=0.75, origin="lower",
                    interpolation="nearest")
        axis.set_xlabel(f"z = {z}", fontsize=7)
        _bare(axis)
    handles = [plt.Line2D([], [], marker="s", ls="", color=colours(place[label])) for label in atlas.values.values()]
    figure.legend(handles, list(atlas.values), loc="outside lower left", ncols=min(7, len(handles)), frameon=False,
                  fontsize=6.5)
    return figure


def kept(ratios, whole, who):
    """Voxels of each ROI, and how many would be left by a threshold on NSD's noise-ceiling SNR.

    ratios: {ROI: (voxels,) ncsnr}. whole: voxels of the volume, most of which no ROI has.
    """
    inside = sum(map(len, ratios.values()))
    title = f"{inside:,} of {whole:,} voxels kept, {whole - inside:,} outside the ROIs dropped"
    figure, ((left, right),) = _plot(1, 2, plotting.WIDTH, 2.8, title, who)
    left.barh(list(ratios), list(map(len, ratios.values())), color=plotting.BLUE)
    left.invert_yaxis()
    left.set_xlabel("voxels kept (mrifeat/)")
    for colour, (roi, ratio) in zip(plotting.SERIES_COLOURS, ratios.items()):
        known = np.sort(ratio[~np.isnan(ratio)])
        right.step(known, 1 - np.arange(len(known)) / len(ratio), where="pre", color=colour, lw=1.2, label=roi)
    right.set(xlabel="x", ylabel="share that make_subjmri.py\n--ncsnr_min x would keep", ylim=(0, 1.02))
    right.legend(frameon=False, fontsize=6)
    return figure


def ceilings(ratios, trials, who):
    """Distribution of the noise ceiling of averages over so many trials, by ROI. ratios: {ROI: (voxels,) ncsnr}."""
    figure, ((axis,),) = _plot(1, 1, 5.2, 2.6, f"Noise ceiling of averages over {trials} trials", who)
    values = [atlases.noise_ceiling(ratio[~np.isnan(ratio)], trials) for ratio in ratios.values()]
    axis.boxplot(values, whis=(5, 95), showfliers=False, medianprops={"color": plotting.VERMILION}, widths=0.6)
    axis.set_xticks(range(1, len(ratios) + 1), list(ratios), rotation=30, ha="right")
    axis.set(ylabel="% of variance that is signal\n(box: quartiles; whiskers: 5–95%)", ylim=(0, None))
    return figure


def repeats(betas, rows, name, who):
    """One voxel's responses to the same pictures seen again. betas (trials,) percent; rows (trials,) which stimulus."""
    order = np.argsort(rows, kind="stable")
    each = np.split(betas[order], np.flatnonzero(np.diff(rows[order])) + 1)
    several = sorted((one for one in each if len(one) > 1), key=np.mean)
    shown = [several[place] for place in plotting.evenly(len(several), 40)]
    figure, ((left, right),) = _plot(1, 2, plotting.WIDTH, 2.8, f"{name}: responses to repeats", who,
                                     width_ratios=(2, 1))
    for place, one in enumerate(shown):
        left.plot([place] * len(one), one, ".", ms=4, color=plotting.SKY)
        left.plot(place, one.mean(), "_", ms=7, color=plotting.BLACK)
    left.set(xlabel=f"{len(shown)} of {len(several)} repeated stimuli, by mean response", ylabel="% signal change",
             xticks=[])
    first, second = np.array([one[:2] for one in several]).T
    right.plot(first, second, ".", ms=3, color=plotting.BLUE, alpha=0.6)
    right.set(xlabel="first trial", ylabel="second trial", title=f"r = {np.corrcoef(first, second)[0, 1]:.2f}")
    right.set_aspect("equal", adjustable="datalim")
    return figure


def alignment(shown, betas, labels, who):
    """Pictures of trials in scan order, each above its trial's responses. betas (trials, voxels) percent."""
    title = "Trials in scan order: what was shown, what some voxels did"
    figure, axes = _plot(2, len(shown), plotting.WIDTH, 2.9, title, who, height_ratios=(1, 1.2))
    some = betas[:, :STRIP]
    limit = np.abs(some - some.mean(0)).max()
    for (above, below), picture, one, label in zip(axes.T, shown, some - some.mean(0), labels, strict=True):
        above.imshow(picture)
        above.set_xlabel(label, fontsize=6)
        drawn = below.imshow(one[:, None], cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        _bare(above)
        _bare(below)
    axes[1, 0].set_ylabel(f"{some.shape[1]} voxels", fontsize=7)
    bar = figure.colorbar(drawn, ax=list(axes[1]), pad=0.01)
    bar.set_label("% signal change,\nfrom these trials' mean", fontsize=6.5)
    return figure


def scaling(betas, scaled, session, name, who):
    """One voxel's responses by session, as NSD gives them and z-scored. betas, scaled, session: (trials,)."""
    figure, axes = _plot(2, 1, plotting.WIDTH, 3.6, f"{name}: what --zscore session does", who, sharex=True)
    for axis, values, label in zip(axes[:, 0], (betas, scaled), ("% signal change", "z")):
        for number in np.unique(session):
            here = np.flatnonzero(session == number)
            colour = plotting.SERIES_COLOURS[number % len(plotting.SERIES_COLOURS)]
            mean, deviation = values[here].mean(), values[here].std()
            axis.plot(here, values[here], ".", ms=1.5, color=colour, alpha=0.5)
            axis.plot(here[[0, -1]], [mean] * 2, color=plotting.BLACK, lw=1)
            axis.fill_between(here[[0, -1]], mean - deviation, mean + deviation, color=colour, alpha=0.25, lw=0)
        axis.set_ylabel(label)
    axes[1, 0].set_xlabel("trial in scan order; a colour a session, line and band: its mean ± sd")
    return figure


def detail(originals, again, who):
    """How much of the pictures' detail is kept: correlation by spatial frequency. Both (n, s, s, 3) uint8, n ≥ 1."""
    side = originals.shape[1]
    theirs, ours = (np.fft.fft2(each.mean(axis=3)) for each in (originals, again))
    ring = np.hypot(*np.meshgrid(*[np.fft.fftfreq(side, 1 / side)] * 2)).round().astype(int)
    frequencies = np.arange(1, side // 2)
    r = []
    for frequency in frequencies:
        one, other = theirs[:, ring == frequency], ours[:, ring == frequency]
        r.append((one * other.conj()).real.sum() / np.sqrt((np.abs(one) ** 2).sum() * (np.abs(other) ** 2).sum()))
    figure, ((axis,),) = _plot(1, 1, 5.2, 2.6, f"What the latent keeps of {len(originals)} pictures", who)
    axis.plot(frequencies, r, color=plotting.BLUE)
    axis.set(xlabel=f"spatial frequency (cycles a picture of {side} px)", ylabel="correlation with the picture",
             xscale="log", ylim=(min(0, *r), 1.02))
    return figure


def told(shown, sentences, title, who, maps=None, labels=None):
    """Pictures, each with what is said of it. sentences: {who says it: n sentences}. maps: None or n (rows, columns)
    arrays drawn beside the pictures. labels: None or n lines below the pictures."""
    columns = 3 if maps is not None else 2
    figure, axes = _plot(len(shown), columns, plotting.WIDTH, 0.5 + 1.1 * len(shown), title, who,
                         width_ratios=[1, 2, 3.4][:columns] if maps is not None else [1, 5])
    colours = (plotting.BLUE, plotting.BLACK, plotting.GREEN)
    for row, (line, picture) in enumerate(zip(axes, shown)):
        line[0].imshow(picture)
        for axis in line:
            _bare(axis)
        if labels is not None:
            line[0].set_xlabel(labels[row], fontsize=6.5)
        if maps is not None:
            low, high = np.percentile(maps, (1, 99))
            line[1].imshow(maps[row], cmap="cividis", aspect="auto", vmin=low, vmax=high)
            line[1].set(xlabel=f"{maps[row].shape[1]} units", ylabel=f"{maps[row].shape[0]} tokens")
        for place, (name, said) in enumerate(sentences.items()):
            sentence = textwrap.fill(f"{name}: {said[row]}", 52 if columns == 3 else 80)
            line[-1].text(0, 1 - (place + 0.5) / len(sentences), sentence, va="center", fontsize=7,
                          color=colours[place % len(colours)], transform=line[-1].transAxes)
    return figure


def tables(tables, title, who, xlabel, ylabel):
    """Square tables side by side, the same rows and columns in each. tables: {name: (n, n)}."""
    figure, axes = _plot(1, len(tables), 3.4 * len(tables), 3.2, title, who)
    for axis, (name, table) in zip(axes[0], tables.items()):
        drawn = axis.imshow(table, cmap="cividis")
        axis.set_title(name, fontsize=8)
        axis.set(xlabel=xlabel, ylabel=ylabel)
        figure.colorbar(drawn, ax=axis, shrink=0.8)
    return figure


def ranks(accuracies, title, who, chance):
    """Distribution over images of identification accuracies, (n,)."""
    figure, ((axis,),) = _plot(1, 1, 5.2, 2.6, title, who)
    axis.hist(accuracies, bins=np.linspace(0, 1, 21), color=plotting.BLUE)
    axis.axvline(chance, color=plotting.BLACK, ls=(0, (4, 3)), lw=0.9)
    axis.axvline(np.mean(accuracies), color=plotting.VERMILION, lw=1.2)
    axis.set(xlabel="share of other images that fit the caption less\n(dashed: chance; red: mean)",
             ylabel=f"of {len(accuracies)} test images")
    return figure


def retrieved(queries, candidates, similar, title, who, most=5):
    """What a caption finds: the pictures that fit it best, the right one framed.

    queries: [(caption, row of its image)]. candidates: function of rows → pictures. similar (n, n): caption × picture.
    """
    most = min(most, similar.shape[1])
    figure, axes = _plot(len(queries), 1 + most, plotting.WIDTH, 0.6 + 1.15 * len(queries), title, who,
                         width_ratios=[1.8] + [1] * most)
    for line, (caption, right) in zip(axes, queries):
        best = np.argsort(-similar[right], kind="stable")[:most]
        line[0].text(0, 0.5, textwrap.fill(caption, 24), va="center", fontsize=7, transform=line[0].transAxes)
        _bare(line[0])
        for axis, place, picture in zip(line[1:], best, candidates(best)):
            axis.imshow(images.resize(picture, figures.TILE))
            _bare(axis)
            if place == right:
                axis.spines[:].set(visible=True, color=plotting.GREEN, linewidth=2.5)
            axis.set_xlabel(f"{similar[right, place]:.2f}", fontsize=6.5)
    return figure
