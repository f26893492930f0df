"""What fine-tuning was chosen for a network, and when its groups were opened."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stablelightning.model.probe import ProbeProfile
from stablelightning.model.transfer_choice import TransferChoice
from stablelightning.report.section import Section
from stablelightning.report.style import COLOURS, MUTED, new_figure, say, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 6.4, 3.6
#: Longer names of groups are written at an angle.
_LEVEL = 8
#: Of the axis, a span whose name is written in two lines.
_NARROW = 0.2


def probe_curve(profile: ProbeProfile, choice: TransferChoice | None = None) -> "Figure":
    """Plot what linear probes read after each depth, with what was chosen.

    Args:
        profile: of the training rows.
        choice: marks what is drawn anew, what is opened and what stays frozen; ``None`` marks
            nothing.

    Example:
        >>> from stablelightning.functional.probe import ProbeScore
        >>> scores = (ProbeScore(0.7, 0.5, 0.1), ProbeScore(0.9, 0.5, 0.1))
        >>> profile = ProbeProfile("accuracy", ("body", "head"), scores, 20, 2, 10)
        >>> probe_curve(profile).axes[0].get_ylabel()
        'accuracy of a linear probe'
    """
    figure = new_figure(_WIDTH, _HEIGHT)
    draw_probes(figure.subplots(), profile, choice)
    say(figure, _title(profile, choice))
    return figure


def draw_probes(axes: Any, profile: ProbeProfile, choice: TransferChoice | None = None) -> None:
    """Draw the same into axes of your own.

    Args:
        axes: of matplotlib.
        profile: as for :func:`probe_curve`.
        choice: as for :func:`probe_curve`.
    """
    known = [(depth, score) for depth, score in enumerate(profile.scores) if score is not None]
    depths = [depth for depth, _ in known]
    values = [score.value for _, score in known]
    errors = [score.error for _, score in known]
    axes.errorbar(
        depths, values, yerr=errors, color=COLOURS[0], marker="o", capsize=3, linewidth=1.8
    )
    axes.axhline(known[0][1].chance, color=MUTED, linewidth=0.8, linestyle=":")
    axes.text(
        *(0.995, known[0][1].chance, "chance" if profile.classes else "the mean"),
        transform=axes.get_yaxis_transform(),
        ha="right",
        va="bottom",
        fontsize=8,
        color=MUTED,
    )
    what = "accuracy of a linear probe" if profile.classes else "variance that a probe explains"
    tidy(axes, x="what the probe reads", y=what)
    labels = ["inputs", *(f"after {name}" for name in profile.groups[:-1])]
    long = max(map(len, labels)) > _LEVEL and len(labels) > 3
    axes.set_xticks(range(len(labels)), labels, rotation=30 if long else 0)
    for label in axes.get_xticklabels() if long else []:
        label.set_horizontalalignment("right")
    if choice is not None:
        _mark(axes, choice)


def _mark(axes: Any, choice: TransferChoice) -> None:
    """Group k lies between what is read at k and at k + 1; the head lies behind the last."""
    axes.set_xlim(-0.3, choice.groups - 0.3)
    frozen = choice.groups - choice.open_groups
    spans = [
        (0, frozen, MUTED, "frozen"),
        (frozen, choice.keep_layers, COLOURS[2], "kept, opened"),
        (max(frozen, choice.keep_layers), choice.groups - 1, COLOURS[1], "drawn anew"),
        (choice.groups - 1, choice.groups, COLOURS[3], "head"),
    ]
    for start, end, colour, name in spans:
        if end <= start:
            continue
        last = min(float(end), choice.groups - 0.3)
        # A narrow span has no room for its name beside that of the next.
        broken = (
            name.replace(" ", "\n").replace(",", "")
            if last - start < _NARROW * choice.groups
            else name
        )
        axes.axvspan(start, last, color=colour, alpha=0.12, linewidth=0)
        axes.text(
            *((start + last) / 2, 1.0, broken),
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=8,
            color=colour,
        )


def _title(profile: ProbeProfile, choice: TransferChoice | None) -> str:
    if choice is None:
        return f"The task is read best after {profile.best} of {len(profile.groups)} groups"
    kept = "all" if not choice.redraws else f"{choice.keep_layers} of {choice.groups - 1}"
    return f"{kept} kept below the head, {choice.open_groups} of {choice.groups} groups opened"


def transfer_section(
    history: Sequence[Mapping[str, Any]],
    *,
    groups: int,
    choice: TransferChoice | None = None,
    profile: ProbeProfile | None = None,
    reason: str = "",
    raced: Sequence[Mapping[str, Any]] = (),
) -> Section | None:
    """What a run tells of its fine-tuning.

    Args:
        history: ``epoch``, ``step``, ``open_groups`` and ``opened`` of each change; without any
            there is nothing to tell.
        groups: how many depth groups there are.
        choice: what was chosen, if anything was.
        profile: the probes that it was chosen by.
        reason: why, in words.
        raced: plans of a race, as :meth:`RacedPlan.to_dict` gives them.

    Example:
        >>> change = {"epoch": 0, "step": 0, "open_groups": 1, "opened": ["head"]}
        >>> transfer_section([change], groups=3).lead
        '1 of 3 depth groups was open in the end'
    """
    if not history:
        return None
    opened = history[-1]["open_groups"]
    rows = [
        [change["epoch"], change["step"], change["open_groups"], ", ".join(change["opened"])]
        for change in history
    ]
    figure, numbers, notes = None, {"unfreeze/open_groups": float(opened)}, []
    if choice is not None and profile is not None:
        figure = probe_curve(profile, choice)
        numbers["unfreeze/keep_layers"] = float(choice.keep_layers)
        numbers["unfreeze/probe"] = profile.at_head.value
    if reason:
        notes.append(reason)
    for plan in raced:
        losses = ", ".join("none" if loss is None else f"{loss:.3g}" for loss in plan["losses"])
        failure = f" ({plan['failure']})" if plan["failure"] else ""
        notes.append(f"raced: {plan['name']!r} ({plan['plan']}), validation loss {losses}{failure}")
    return Section(
        name="transfer",
        title="Fine-tuning",
        lead=f"{opened} of {groups} depth groups {'was' if opened == 1 else 'were'} open in the "
        "end",
        columns=["epoch", "step", "open groups", "opened"],
        rows=rows,
        figure=figure,
        notes=notes,
        numbers=numbers,
    )
