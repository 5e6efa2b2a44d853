"""Pictures of runs and results: one file, one picture.

`plot` draws any result, `flow_graph` information flow as a graph. `timeline` shows what tokens carry along a clip, `frame_grid`
frame by frame, `coloured_tokens` word by word; `attention` and `attention_full` who attends to whom. `report` writes a page with
the clip inside, `save` a page of one figure, `dark` turns a figure for dark pages. Nothing here sets a global renderer or
reaches the network.

All of it is loaded at once: functions bear the names of their modules, which a lazy import would put in their place.
"""

from functools import singledispatch
from typing import Any

import plotly.graph_objects as go

from avlens.analyses.attention_mass import AttentionMass
from avlens.analyses.attribution import LogitAttribution
from avlens.analyses.attribution_patching import PatchingEffects
from avlens.analyses.discarding import Discarding
from avlens.analyses.dominance import HeadDominance, Hubs, ModalityDominance
from avlens.analyses.dynamics import AttentionDynamics
from avlens.analyses.flow import HeadFlow, InformationFlow
from avlens.analyses.logit_lens import LatentUnderstanding, LogitLens
from avlens.analyses.massive_activations import MassiveActivations
from avlens.analyses.paths import PathEffects
from avlens.analyses.probes import Probes
from avlens.analyses.selection import Selection
from avlens.analyses.shift import ShiftTable, TokenShift
from avlens.analyses.sinks import SinkDims, Sinks
from avlens.analyses.tracing import CausalTrace, LayerTrace
from avlens.analyses.transport import Transport
from avlens.choices import DecodingChoices
from avlens.datasets.counterfactual import Counterfactuals, Swaps
from avlens.errors import ViewError
from avlens.generation import Generation
from avlens.hub_table import HubTable
from avlens.hubs import PromptHubs
from avlens.metrics.aloha import Aloha
from avlens.metrics.chair import Chair
from avlens.metrics.fidelity import Fidelity
from avlens.summaries import Comparison, Summary
from avlens.tables import TraceTable
from avlens.views.aloha import plot_aloha
from avlens.views.attention import attention, attention_full
from avlens.views.attention_mass import plot_attention_mass
from avlens.views.attribution import plot_attribution
from avlens.views.chair import plot_chair
from avlens.views.choices import plot_choices
from avlens.views.coloured_tokens import ColouredTokens, coloured_tokens
from avlens.views.compare import compare
from avlens.views.counterfactuals import plot_counterfactuals, plot_swaps
from avlens.views.discarding import plot_discarding
from avlens.views.dominance import plot_dominance
from avlens.views.dynamics import plot_dynamics
from avlens.views.explorer import PatchExplorer
from avlens.views.fidelity import plot_fidelity
from avlens.views.flow import plot_flow
from avlens.views.flow_graph import flow_graph
from avlens.views.frame_grid import frame_grid
from avlens.views.generation import plot_generation
from avlens.views.head_dominance import plot_head_dominance
from avlens.views.head_flow import plot_head_flow
from avlens.views.hub_table import plot_hub_table
from avlens.views.hubs import plot_hubs
from avlens.views.latent import plot_latent
from avlens.views.layer_trace import plot_layer_trace
from avlens.views.lens import plot_lens
from avlens.views.massive_activations import plot_massive_activations
from avlens.views.page import View, save
from avlens.views.patch_effects import plot_patching
from avlens.views.patch_grid import plot_patch_grid
from avlens.views.patching import PatchGrid
from avlens.views.paths import plot_paths
from avlens.views.probes import plot_probes
from avlens.views.prompt_hubs import plot_prompt_hubs
from avlens.views.report import Section, report
from avlens.views.selection import plot_selection
from avlens.views.shift import plot_shift
from avlens.views.shift_table import plot_shift_table
from avlens.views.sink_dims import plot_sink_dims
from avlens.views.sinks import plot_sinks
from avlens.views.style import dark
from avlens.views.summary import plot_comparison, plot_summary
from avlens.views.timeline import timeline
from avlens.views.trace import plot_trace
from avlens.views.trace_table import plot_trace_table
from avlens.views.transport import plot_transport

__all__ = [
    "ColouredTokens",
    "PatchExplorer",
    "Section",
    "View",
    "attention",
    "attention_full",
    "coloured_tokens",
    "compare",
    "dark",
    "flow_graph",
    "frame_grid",
    "plot",
    "report",
    "save",
    "timeline",
]


@singledispatch
def plot(result: Any) -> go.Figure:
    """The picture of a result. `plot.register(type)` adds one for a type of your own.

    Raises:
        ViewError: If there is none for this type.
    """
    known = sorted(kind.__name__ for kind in plot.registry if kind is not object)
    raise ViewError(
        f"there is no picture of {type(result).__module__}.{type(result).__qualname__}. plot draws {', '.join(known)}; "
        "add one with plot.register(type)(draw)."
    )


plot.register(Aloha)(plot_aloha)
plot.register(AttentionDynamics)(plot_dynamics)
plot.register(AttentionMass)(plot_attention_mass)
plot.register(CausalTrace)(plot_trace)
plot.register(Chair)(plot_chair)
plot.register(Comparison)(plot_comparison)
plot.register(Counterfactuals)(plot_counterfactuals)
plot.register(DecodingChoices)(plot_choices)
plot.register(Discarding)(plot_discarding)
plot.register(Fidelity)(plot_fidelity)
plot.register(Generation)(plot_generation)
plot.register(HeadDominance)(plot_head_dominance)
plot.register(HeadFlow)(plot_head_flow)
plot.register(HubTable)(plot_hub_table)
plot.register(Hubs)(plot_hubs)
plot.register(InformationFlow)(plot_flow)
plot.register(LatentUnderstanding)(plot_latent)
plot.register(LayerTrace)(plot_layer_trace)
plot.register(LogitAttribution)(plot_attribution)
plot.register(LogitLens)(plot_lens)
plot.register(MassiveActivations)(plot_massive_activations)
plot.register(ModalityDominance)(plot_dominance)
plot.register(PatchGrid)(plot_patch_grid)
plot.register(PatchingEffects)(plot_patching)
plot.register(PathEffects)(plot_paths)
plot.register(Probes)(plot_probes)
plot.register(PromptHubs)(plot_prompt_hubs)
plot.register(Selection)(plot_selection)
plot.register(ShiftTable)(plot_shift_table)
plot.register(SinkDims)(plot_sink_dims)
plot.register(Sinks)(plot_sinks)
plot.register(Summary)(plot_summary)
plot.register(Swaps)(plot_swaps)
plot.register(TokenShift)(plot_shift)
plot.register(TraceTable)(plot_trace_table)
plot.register(Transport)(plot_transport)
