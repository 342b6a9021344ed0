"""The style sheet of Mulle's reports, as one string: it travels inside the page.

Colours are variables, set once for light and once for dark; charts use the same variables and so follow.
"""

STYLE = """
:root{--paper:#fbfbf9;--card:#fff;--ink:#1d2129;--soft:#5b6270;--faint:#8b92a0;--line:#e3e4e0;--grid:#ecece8;
--one:#2f5d8a;--two:#c2703d;--three:#5f8f6b;--four:#8a6aa8;--five:#a58a2e;--six:#5c7f8f;
--ok:#2f7d4f;--ok-bg:#e8f3ec;--warn:#96690a;--warn-bg:#faf1dc;--bad:#b3372f;--bad-bg:#fbe9e7;--plain-bg:#f1f1ed;--shade:47,93,138}
@media (prefers-color-scheme:dark){:root{--paper:#14161a;--card:#1b1e24;--ink:#e7e8ea;--soft:#a9afba;--faint:#7d8491;--line:#2e323a;
--grid:#272b32;
--one:#7fb0dd;--two:#e39a66;--three:#8cc39b;--four:#b99ad8;--five:#d4ba5c;--six:#8db3c4;
--ok:#74c794;--ok-bg:#1b3325;--warn:#e0b45c;--warn-bg:#362b14;--bad:#ee8a80;--bad-bg:#3b1f1d;--plain-bg:#252932;--shade:127,176,221}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",
"Apple SD Gothic Neo","Malgun Gothic","Noto Sans KR","Noto Sans CJK KR",sans-serif;font-variant-numeric:tabular-nums}
main{max-width:1040px;margin:0 auto;padding:36px 24px 56px}
header{margin-bottom:28px}
.headline{display:flex;flex-wrap:wrap;align-items:center;gap:8px 14px}
h1{font-size:27px;line-height:1.25;letter-spacing:-.01em;margin:0;font-weight:650;overflow-wrap:anywhere}
h2{font-size:18px;margin:0 0 4px;font-weight:620;letter-spacing:-.005em}
h3{font-size:14px;margin:20px 0 6px;font-weight:620}
.subtitle{color:var(--soft);margin:6px 0 0;font-size:16px;max-width:72ch}
nav{margin-top:14px;display:flex;flex-wrap:wrap;gap:4px 16px;font-size:13px}
nav a{color:var(--soft);text-decoration:none;border-bottom:1px solid var(--line)}
nav a:hover,nav a:focus{color:var(--one);border-color:var(--one)}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:22px 24px;margin:0 0 18px;scroll-margin-top:12px}
.note{color:var(--soft);font-size:13.5px;margin:0 0 14px;max-width:100ch}
p{margin:0 0 10px}
.badge{display:inline-block;padding:1px 10px;border-radius:99px;font-size:13px;font-weight:600;white-space:nowrap;
background:var(--plain-bg);color:var(--soft)}
.badge.ok{background:var(--ok-bg);color:var(--ok)}.badge.warn{background:var(--warn-bg);color:var(--warn)}
.badge.bad{background:var(--bad-bg);color:var(--bad)}
.callout{border-left:3px solid var(--line);background:var(--plain-bg);padding:10px 14px;border-radius:0 6px 6px 0;overflow-wrap:anywhere}
.callout.ok{border-color:var(--ok);background:var(--ok-bg)}.callout.warn{border-color:var(--warn);background:var(--warn-bg)}
.callout.bad{border-color:var(--bad);background:var(--bad-bg)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:18px 22px;margin:4px 0 6px}
.tile{border-top:2px solid var(--line);padding-top:9px;min-width:0}
.tile.ok{border-color:var(--ok)}.tile.warn{border-color:var(--warn)}.tile.bad{border-color:var(--bad)}
.tile-label{color:var(--soft);font-size:13px}.tile-value{font-size:26px;font-weight:620;line-height:1.25;overflow-wrap:anywhere}
.tile-note{color:var(--faint);font-size:12.5px}
.scroll{overflow-x:auto;margin:0 0 4px}
table{border-collapse:collapse;width:100%;font-size:13.5px}
caption{text-align:left;color:var(--soft);font-size:13px;padding-bottom:6px}
th{font-weight:560;color:var(--soft);text-align:left;border-bottom:1px solid var(--line);padding:5px 14px 5px 0;white-space:nowrap;
vertical-align:bottom}
td{border-bottom:1px solid var(--grid);padding:6px 14px 6px 0;vertical-align:top;overflow-wrap:break-word;max-width:46ch}
td:last-child,th:last-child{padding-right:0}
tbody tr:last-child td{border-bottom:0}
.n{text-align:right;white-space:nowrap}
.pairs{margin:0;display:grid;grid-template-columns:repeat(auto-fit,minmax(290px,1fr));gap:6px 28px;font-size:13.5px}
.pairs div{display:flex;gap:12px;min-width:0}.pairs dt{color:var(--soft);flex:0 0 108px}.pairs dd{margin:0;overflow-wrap:anywhere;
min-width:0}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:22px 34px;align-items:start}
.columns>div{min-width:0}
figure{margin:0 0 8px}figcaption{font-size:13.5px;font-weight:580;margin:0 0 6px}
svg{display:block;max-width:100%;overflow:visible}svg.chart{width:100%;height:auto;max-width:560px}
svg text{font:11.5px system-ui,-apple-system,"Segoe UI",Roboto,"Apple SD Gothic Neo","Malgun Gothic","Noto Sans KR","Noto Sans CJK KR",
sans-serif;fill:var(--soft)}
.legend{display:flex;flex-wrap:wrap;gap:2px 16px;font-size:12.5px;color:var(--soft);margin:0 0 4px}
.legend i{display:inline-block;width:14px;height:3px;border-radius:2px;margin-right:6px;vertical-align:middle}
.rows{display:grid;gap:0 12px;font-size:13.5px;align-items:center}
.rows.bars{grid-template-columns:minmax(72px,max-content) minmax(90px,1fr) max-content}
.rows.forest{grid-template-columns:minmax(84px,max-content) minmax(110px,1fr) max-content}
.rows .label{max-width:230px;overflow:hidden;text-overflow:ellipsis;white-space:nowrap;padding:3px 0}
.rows .group{grid-column:1/-1;color:var(--soft);font-size:12.5px;font-weight:580;margin-top:10px;border-bottom:1px solid var(--grid);
overflow-wrap:anywhere}
.rows .figure{text-align:right;white-space:nowrap}.rows .figure small,.rows .label small{color:var(--faint);font-size:12px}
.rows .axis{color:var(--faint);font-size:11.5px}
.scroll+.pairs{margin-top:16px}
.heat{width:auto}.heat td{min-width:92px}.heat td,.heat th{border:2px solid var(--card);text-align:center;padding:9px 8px}
.heat th{color:var(--soft);font-weight:560;
border-bottom:0}
.heat th.side{text-align:right}.heat td small{display:block;color:inherit;opacity:.75;font-size:11.5px}
.gate{padding:9px 0;border-bottom:1px solid var(--grid)}.gate:last-child{border-bottom:0}
.gate strong{font-weight:600;margin-left:6px;overflow-wrap:anywhere}.gate p{
margin:4px 0 0;color:var(--soft);font-size:13.5px;max-width:100ch}
details{margin-top:10px}summary{cursor:pointer;color:var(--soft);font-size:13.5px}details>*:not(summary){margin-top:10px}
footer{color:var(--faint);font-size:12.5px;margin:22px 2px 0;overflow-wrap:anywhere}
@media (max-width:620px){main{padding:20px 12px 40px}section{padding:16px 15px;border-radius:8px}h1{font-size:22px}
.tile-value{font-size:22px}
.tiles{grid-template-columns:repeat(2,minmax(0,1fr));gap:14px 16px}
.rows.forest,.rows.bars{grid-template-columns:minmax(0,34%) minmax(60px,1fr) max-content}
.rows .label{white-space:normal;overflow-wrap:anywhere;line-height:1.3}.rows .figure small{display:block}
.pairs{grid-template-columns:1fr}}
@media print{body{background:#fff}section{break-inside:avoid;border-color:#ddd}nav{display:none}}
""".strip()
