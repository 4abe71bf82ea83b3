"""What the report page is made of: sections, tables and panels as HTML, its style and its script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from cliad.pipelines.report.statistics import Summary

N_COLOUR = 8
MOST_CHARTS = 12  # panels of one kind in one block
MOST_COLUMNS = 9  # of a table that is printed in the usual size

CSS = """
:root{--paper:#fff;--ink:#1b1b1b;--soft:#5a5a5a;--rule:#d5d5d5;--tint:#f4f4f2;--heat:0,114,178;
--c0:#0072b2;--c1:#c04a00;--c2:#007a5a;--c3:#a8457f;--c4:#8a6100;--c5:#6f8f00;--c6:#6b4ba3;--c7:#555}
@media screen and (prefers-color-scheme:dark){:root{--paper:#16181a;--ink:#ececec;--soft:#a8a8a8;--rule:#3a3d40;--tint:#1f2224;--heat:86,180,233;
--c0:#56b4e9;--c1:#f0904a;--c2:#35c79b;--c3:#e39ac3;--c4:#e6b033;--c5:#c3dc5a;--c6:#b9a0ec;--c7:#bbb}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1120px;margin:0 auto;padding:1rem}
h1{font-size:1.6rem;line-height:1.25;margin:.5rem 0 1rem;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:2.2rem 0 .4rem;padding-top:.6rem;border-top:1px solid var(--rule)}
h3{font-size:1rem;margin:1.4rem 0 .3rem;overflow-wrap:anywhere}
h3 small{font-weight:400;color:var(--soft);display:block}
p{margin:.4rem 0 .8rem;max-width:44rem}
small{color:var(--soft);font-size:.82em}
.notes{color:var(--soft);padding-left:1.2rem;max-width:44rem}
footer{margin:2.5rem 0 1rem;color:var(--soft);font-size:.9rem}
.scroll{overflow-x:auto;max-width:100%;margin:.6rem 0 1rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}
caption{text-align:left;font-weight:600;padding:.3rem 0;overflow-wrap:anywhere}
th,td{padding:.28rem .7rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--rule);vertical-align:top}
thead th{color:var(--soft);font-weight:600;border-bottom:2px solid var(--rule);vertical-align:bottom;white-space:normal}
tbody th{font-weight:500}
th:first-child,td:first-child{padding-left:0}
.names1 :is(th,td):nth-child(-n+1),.names2 :is(th,td):nth-child(-n+2),.names3 :is(th,td):nth-child(-n+3),
.names4 :is(th,td):nth-child(-n+4),
.names5 :is(th,td):nth-child(-n+5){text-align:left}
.best td{min-width:6.2rem;white-space:normal}
.best td:nth-child(2){min-width:0}
.best b{white-space:nowrap}
.versus td{white-space:normal;min-width:11rem} td small{line-height:1.35}
.heatmap td{padding:2px}
.heat{display:block;padding:.35rem .7rem;border-radius:3px;background:rgba(var(--heat),calc(.04 + .5*var(--share)))}
.bar{display:inline-block;min-width:7rem;text-align:right;padding:.1rem .4rem;border-radius:3px;
background:linear-gradient(90deg,rgba(var(--heat),.3) calc(100%*var(--share)),transparent 0)}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,21rem),1fr));gap:1rem 1.6rem;align-items:start}
.panels>*{min-width:0;max-width:36rem}
figure{margin:0;break-inside:avoid}
figcaption{font-weight:600;overflow-wrap:anywhere}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;max-width:none}
.legend>span{overflow-wrap:anywhere}
.key{display:inline-block;width:1.4em;border-top:.22em solid var(--c);vertical-align:.25em;margin-right:.45em}
.key.special{border-top-style:dashed}
pre{background:var(--tint);padding:.8rem;border-radius:4px;white-space:pre-wrap;overflow-wrap:anywhere;font-size:.85rem}
summary{cursor:pointer;padding:.3rem 0;color:var(--soft)}
input{font:inherit;color:inherit;background:var(--tint);border:1px solid var(--soft);border-radius:4px;padding:.25rem .5rem;max-width:100%}
th button{all:unset;cursor:pointer}
th button:focus-visible,[tabindex]:focus-visible{outline:2px solid var(--c0);outline-offset:2px}
th[aria-sort=ascending] button::after{content:" ▲"} th[aria-sort=descending] button::after{content:" ▼"}
.pygal-chart{display:block;width:100%;height:auto;font-family:system-ui,sans-serif}
.pygal-chart text{fill:var(--soft);font-size:13px}
.pygal-chart .axis.y text{text-anchor:end} .pygal-chart .axis.x text{text-anchor:middle}
.pygal-chart .title{font-size:14px;text-anchor:middle;fill:var(--ink)}
.pygal-chart .background{fill:none}
.pygal-chart .guide.line{stroke:var(--rule);stroke-width:1;fill:none} .pygal-chart .axis .line{stroke:var(--soft);fill:none}
.pygal-chart .axis.x .guide.line{stroke:none} .pygal-chart .axis.y .guide.line{stroke:var(--rule)}
.pygal-chart .series .line{stroke:var(--c);stroke-width:2.4;fill:none}
.pygal-chart .series .ci path{stroke:var(--c);stroke-width:1.4;fill:none;opacity:.75}
.pygal-chart .series .dot{fill:var(--c);stroke:var(--paper);stroke-width:1}
.pygal-chart .special .line{stroke-dasharray:5 5;stroke-width:1.6}
.pygal-chart .tooltip-overlay{display:none}
.color-0{--c:var(--c7)} .color-1{--c:var(--c0)} .color-2{--c:var(--c1)} .color-3{--c:var(--c2)} .color-4{--c:var(--c3)}
.color-5{--c:var(--c4)} .color-6{--c:var(--c5)} .color-7{--c:var(--c6)}
.pygal-chart :is(.color-8,.color-16){--c:var(--c0)} .pygal-chart :is(.color-9,.color-17){--c:var(--c1)}
.pygal-chart :is(.color-10,.color-18){--c:var(--c2)} .pygal-chart :is(.color-11,.color-19){--c:var(--c3)}
@media (max-width:600px){main{padding:.7rem} th,td{padding:.28rem .45rem} tbody th{white-space:normal}
.names3 tbody th{min-width:7rem} .pygal-chart text{font-size:15px} .pygal-chart .title{font-size:15px}}
@media print{:root{--ink:#000;--soft:#444;--rule:#bbb} body{font-size:10.5pt} main{max-width:none;padding:0}
.scroll{overflow:visible} .tool,#rows{display:none} details>*{display:block!important} details::details-content{content-visibility:visible;display:block}
h2,h3,.legend,caption,figcaption,summary,h2+p,h3+p{break-after:avoid} h2,h3,p,li,tr,table,figure,.legend{break-inside:avoid}
table{font-size:8.5pt} table small{font-size:.9em} th,td{white-space:normal;padding:.2rem .45rem} tbody th{white-space:nowrap}
.wide{font-size:7pt} .wide :is(th,td){padding:.15rem .2rem} .wide tbody th{white-space:normal;min-width:9em} .wide td small{display:block}
.panels{grid-template-columns:1fr 1fr} footer{margin:.6rem 0 0;break-before:avoid}
.heat,.bar,.key,pre{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""

SCRIPT = """
(() => {
  const table = document.querySelector("table.rows"), body = table.tBodies[0], rows = [...body.rows];
  const text = (row, i) => row.cells[i].textContent, number = s => s.trim() === "" ? NaN : Number(s);
  [...table.tHead.rows[0].cells].forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("[aria-sort]").forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const order = (a, b) => {
        const [x, y] = [text(a, i), text(b, i)], [m, n] = [number(x), number(y)];
        return isNaN(m) || isNaN(n) ? x.localeCompare(y, undefined, {numeric: true}) : m - n;
      };
      rows.sort((a, b) => down ? order(b, a) : order(a, b));
      body.append(...rows);
    });
  });
  const filter = document.getElementById("filter"), count = document.getElementById("count");
  const words = rows.map(row => [...row.cells].map(cell => cell.textContent).join(" ").toLowerCase());
  const where = new Map(rows.map((row, i) => [row, words[i]]));
  const show = () => {
    const asked = filter.value.toLowerCase().split(/\\s+/).filter(Boolean);
    rows.forEach(row => { row.hidden = !asked.every(word => where.get(row).includes(word)); });
    count.textContent = `${rows.filter(row => !row.hidden).length} of ${rows.length} runs`;
  };
  filter.addEventListener("input", show);
  show();
})();
"""


def section(name: str, title: str, *parts: str) -> str:
    body = "".join(parts)
    return f'<section id="{name}"><h2>{title}</h2>\n{body}</section>\n' if body else ""


def html_table(
    head: Sequence[str],
    lines: Sequence[Sequence[str]],
    *,
    caption: str = "",
    names: int = 1,
    kind: str = "",
) -> str:
    """A table of ready HTML cells, the first `names` columns text; it scrolls in itself where it is too wide."""
    cell = lambda i, text: f"<td>{text}</td>" if i else f'<th scope="row">{text}</th>'
    rows = "".join(
        f"<tr>{''.join(cell(i, text) for i, text in enumerate(line))}</tr>\n" for line in lines
    )
    heads = "".join(f'<th scope="col">{text}</th>' for text in head)
    caption = f"<caption>{caption}</caption>" if caption else ""
    kind += " wide" * (len(head) > MOST_COLUMNS)
    return f'<div class="scroll" tabindex="0"><table class="names{names} {kind}">{caption}<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def percent(cell: Summary | None, *, interval: bool = False) -> str:
    """`95.1 ± 0.3` as HTML: mean, and standard deviation or half the 95 % interval."""
    if cell is None:
        return "–"
    spread = cell.half if interval else cell.std
    return f"{100 * cell.mean:.1f}" + (
        "" if spread is None else f"<small> ±\u00a0{100 * spread:.1f}</small>"
    )


def figure(title: str, chart: str) -> str:
    return f"<figure><figcaption>{title}</figcaption>{chart}</figure>"


def legend(names: Sequence[str], first: int = 0, dashed: int | None = None) -> str:
    key = lambda i: (
        f'<span class="key color-{i % N_COLOUR}{" special" if i == dashed else ""}"></span>'
    )
    return f'<p class="legend">{"".join(f"<span>{key(i)}{escape(name)}</span> " for i, name in enumerate(names, first))}</p>'


def panel_group(
    title: str, names: Sequence[str], panels: Sequence[str], dashed: int | None = None
) -> str:
    """Panels of one kind with their legend; many of them fold away."""
    shown, hidden = panels[:MOST_CHARTS], panels[MOST_CHARTS:]
    rest = (
        f"<details><summary>{len(hidden)} more</summary><div class=panels>{''.join(hidden)}</div></details>"
        if hidden
        else ""
    )
    return (
        f"<h3>{title}</h3>{legend(names, dashed=dashed)}<div class=panels>{''.join(shown)}</div>{rest}"
        if panels
        else ""
    )
