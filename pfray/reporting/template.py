"""Page template of the report, with the style for light and dark screens and the script that recolours figures."""

from __future__ import annotations

from string import Template

PAGE = Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --text: #1b1f27; --soft: #5b6472; --ground: #f6f7f9; --card: #ffffff;
  --line: #dfe3e9; --warn: #92400e; --warn-ground: #fef3c7; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e7eaf0; --soft: #a3acba; --ground: #14171c; --card: #1c2027; --line: #333a45;
    --warn: #fcd34d; --warn-ground: #3a2f12; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 20px 48px; }
h1 { font-size: 1.5rem; line-height: 1.3; margin: 0 0 12px; font-weight: 650; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 0 0 4px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px 18px;
  margin-top: 18px; min-width: 0; }
.note, dl { color: var(--soft); font-size: .9rem; margin: 4px 0 8px; overflow-wrap: anywhere; }
.remarks { margin: 0 0 12px; padding: 10px 14px 10px 32px; border-radius: 8px; color: var(--warn);
  background: var(--warn-ground); }
.remarks:empty { display: none; }
dl { display: flex; flex-wrap: wrap; gap: 4px 20px; }
dl > div { display: flex; gap: 6px; } dd { margin: 0; color: var(--text); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 8px 10px; border-bottom: 1px solid var(--line); white-space: nowrap;
  vertical-align: top; }
thead th { font-weight: 500; color: var(--soft); }
tbody th { text-align: left; }
small { display: block; color: var(--soft); }
pre { overflow-x: auto; background: var(--ground); border-radius: 6px; padding: 10px; margin: 6px 0;
  font-size: .85rem; white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin: 8px 0; } summary { cursor: pointer; }
@media (max-width: 600px) {
  main { padding: 14px 10px 32px; } section { padding: 12px 10px; } h1 { font-size: 1.2rem; }
}
</style>
<script>$plotly</script>
</head>
<body>
<main>
<h1>$headline</h1>
<ul class="remarks">$remarks</ul>
<dl>$facts</dl>
$body
</main>
<script>
const dark = matchMedia("(prefers-color-scheme: dark)");
function recolour() {
  const text = dark.matches ? "#d5dae3" : "#3a4250";
  document.querySelectorAll(".js-plotly-plot").forEach(plot => Plotly.relayout(plot, {"font.color": text}));
}
dark.addEventListener("change", recolour);
recolour();
</script>
</body>
</html>
"""
)
