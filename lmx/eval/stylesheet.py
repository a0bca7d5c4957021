"""The look of a report: one style sheet, no fonts or images from elsewhere, light and dark."""

STYLE = """
:root { --ink: #1d2129; --soft: #5b6472; --faint: #dfe3e9; --paper: #fbfaf8; --card: #ffffff;
  --t0: #2f6690; --t1: #d1782b; --t2: #3f8f6b; --t3: #8a5a9e; --t4: #8b95a3; --t5: #b5484b;
  --good: #2c7a51; --bad: #b23b3b; --even: #8a6d1d;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif;
  --serif: Charter, "Bitstream Charter", "Iowan Old Style", Georgia, "DejaVu Serif", serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ec; --soft: #9aa4b2; --faint: #333a45; --paper: #15181d; --card: #1c2027;
  --t0: #6fa8d6; --t1: #e59a55; --t2: #6bbd97; --t3: #b98acb; --t4: #8791a0; --t5: #de7b7d;
  --good: #6bbd97; --bad: #e08585; --even: #d0b25c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 var(--serif); }
main { max-width: 980px; margin: 0 auto; padding: 56px 28px 80px; }
h1 { font-size: 34px; line-height: 1.15; margin: 0 0 8px; letter-spacing: -0.01em; }
h2 { font-size: 22px; margin: 56px 0 6px; padding-top: 14px; border-top: 1px solid var(--faint); }
h3 { font: 600 13px/1.3 var(--sans); margin: 0 0 6px; }
p { margin: 0 0 14px; max-width: 70ch; }
.lead { color: var(--soft); font-size: 17px; }
.note { color: var(--soft); font-size: 14px; }
code, pre { font-family: var(--mono); font-size: 13px; }
pre { background: var(--card); border: 1px solid var(--faint); border-radius: 6px; padding: 14px 16px; overflow-x: auto;
  line-height: 1.45; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 14px; margin: 28px 0 8px; }
.card { background: var(--card); border: 1px solid var(--faint); border-radius: 8px; padding: 16px 18px; font-family: var(--sans); }
.card b { display: block; font-size: 27px; font-weight: 600; letter-spacing: -0.02em; font-variant-numeric: tabular-nums; }
.card span { display: block; font-size: 13px; color: var(--soft); line-height: 1.4; }
.card span.name { color: var(--ink); font-weight: 600; margin-bottom: 2px; }
.verdicts { list-style: none; margin: 14px 0 0; padding: 0; }
.verdicts li { display: grid; grid-template-columns: 118px 1fr; gap: 14px; padding: 9px 0; border-bottom: 1px solid var(--faint); }
.verdicts p { margin: 0; max-width: none; }
.mark { font: 600 12px/1 var(--sans); padding: 5px 0; align-self: start; text-align: center; border-radius: 4px;
  border: 1px solid; margin-top: 1px; }
.mark.helped { color: var(--good); } .mark.noise { color: var(--even); } .mark.hurt { color: var(--bad); }
.scroll { overflow-x: auto; margin: 16px 0; }
table { border-collapse: collapse; width: 100%; font: 13.5px/1.45 var(--sans); font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); border-bottom: 1px solid var(--ink);
  padding: 6px 12px 6px 0; white-space: nowrap; }
td { border-bottom: 1px solid var(--faint); padding: 7px 12px 7px 0; vertical-align: top; }
th.number, td.number { text-align: right; white-space: nowrap; }
.samples { table-layout: fixed; min-width: 640px; }
.samples td { font-family: var(--mono); font-size: 12.5px; white-space: pre-wrap; overflow-wrap: anywhere; }
.samples .task { display: block; font: 600 11.5px/1.6 var(--sans); color: var(--soft); }
.right { color: var(--good); } .wrong { color: var(--bad); }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(400px, 1fr)); gap: 20px; margin-top: 18px; }
.plots figure { margin: 0; background: var(--card); border: 1px solid var(--faint); border-radius: 8px; padding: 14px 14px 6px; }
svg.chart { display: block; width: 100%; height: auto; margin: 10px 0; font-family: var(--sans); }
svg text { fill: var(--ink); font-size: 13px; font-variant-numeric: tabular-nums; }
svg .tick { fill: var(--soft); font-size: 11.5px; } svg .small { font-size: 12px; } svg .strong { font-weight: 600; }
svg .end { text-anchor: end; } svg .middle { text-anchor: middle; }
svg .grid { stroke: var(--faint); } svg .axis { stroke: var(--soft); }
svg .reference { stroke: var(--soft); stroke-dasharray: 3 4; }
svg .line { fill: none; stroke: var(--tone); stroke-width: 1.8; stroke-linejoin: round; }
svg .bar { fill: var(--tone); } svg .dot { fill: var(--tone); }
svg .range { stroke: var(--tone); stroke-width: 3; stroke-opacity: 0.45; stroke-linecap: round; }
svg .whisker { stroke: var(--ink); fill: none; stroke-width: 1.3; }
svg .box { fill: var(--card); stroke: var(--soft); }
svg .edge { fill: none; stroke: var(--soft); stroke-width: 1.2; } svg .edge-head { fill: var(--soft); }
.legend { font: 13px var(--sans); color: var(--soft); margin: 12px 0 0; } .legend span { margin-right: 20px; }
.legend .key { display: inline-block; width: 11px; height: 11px; border-radius: 6px; margin-right: 6px; background: var(--tone); }
.tone-0 { --tone: var(--t0); } .tone-1 { --tone: var(--t1); } .tone-2 { --tone: var(--t2); }
.tone-3 { --tone: var(--t3); } .tone-4 { --tone: var(--t4); } .tone-5 { --tone: var(--t5); }
details { margin: 18px 0; } summary { cursor: pointer; font: 600 14px var(--sans); }
@media (max-width: 560px) { main { padding: 32px 16px 60px; } .plots { grid-template-columns: 1fr; }
  .verdicts li { grid-template-columns: 1fr; gap: 4px; }
  .mark { justify-self: start; padding: 5px 10px; } }
@media print { body { background: #fff; } .card, .plots figure { break-inside: avoid; } }
"""
