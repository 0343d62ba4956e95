"""The page of an audit, as a jinja2 template: one file without scripts or outside requests."""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{{ title }}</title>
<style>
:root {
  --text: #1c1e21; --soft: #5c6370; --back: #ffffff; --card: #f5f6f8; --line: #d9dce1;
  --good: #0b6b3a; --good-back: #e2f3e8; --bad: #9c1c1c; --bad-back: #fbe4e2; --link: #1a56a8;
}
@media (prefers-color-scheme: dark) {
  :root {
    --text: #e6e7e9; --soft: #a2a8b3; --back: #16181c; --card: #20232a; --line: #3a3f49;
    --good: #7fd6a4; --good-back: #16351f; --bad: #f2a49c; --bad-back: #43201d; --link: #8ab8f5;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.2rem; max-width: 78rem; color: var(--text); background: var(--back);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: .4rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2.4rem 0 .6rem; border-top: 1px solid var(--line);
  padding-top: 1rem; }
h3 { font-size: 1.05rem; margin: 1.4rem 0 .4rem; overflow-wrap: anywhere; }
p, dd, li { max-width: 48rem; }
a { color: var(--link); }
.soft, small { color: var(--soft); }
nav a { margin-right: .9rem; white-space: nowrap; display: inline-block; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
th, td { text-align: left; vertical-align: top; padding: .4rem .5rem;
  border-bottom: 1px solid var(--line); }
thead th { border-bottom: 2px solid var(--line); }
.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
sup { line-height: 0; }
td small, th small { display: block; line-height: 1.3; font-weight: 400; }
.wide { overflow-x: auto; }
.pass { color: var(--good); background: var(--good-back); }
.fail { color: var(--bad); background: var(--bad-back); }
.pass small, .fail small { color: inherit; }
dt { font-weight: 600; margin-top: .6rem; }
dd { margin: 0; }
figure { margin: .6rem 0; }
figure > .wide > img { max-width: 100%; height: auto; background: #ffffff; border-radius: 4px;
  padding: 4px; }
figcaption { color: var(--soft); font-size: .88rem; max-width: 48rem; }
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.6rem, 1fr)); gap: .6rem; }
.maps figure { margin: 0; }
.maps img { width: 100%; image-rendering: pixelated; padding: 0; }
.maps figcaption { font-size: .74rem; line-height: 1.25; overflow-wrap: anywhere; }
.grid { width: auto; }
.grid th, .grid td { padding: .15rem .3rem; vertical-align: middle; border: 0; }
.grid thead th { overflow-wrap: anywhere; max-width: 6rem; }
.grid td small { font-size: .72rem; }
.grid img { width: 5.6rem; image-rendering: pixelated; display: block; }
details { margin: .5rem 0; }
summary { cursor: pointer; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--card); padding: .7rem;
  border-radius: 4px; font-size: .82rem; }
code { overflow-wrap: anywhere; }
@media (max-width: 44rem) {
  body { padding: .8rem; }
  figure > .wide > img { max-width: none; width: 46rem; }
  .verdict thead { display: none; }
  .verdict tr { display: block; border: 1px solid var(--line); border-radius: 6px;
    margin-bottom: .8rem; }
  .verdict th, .verdict td { display: block; width: 100%; }
  .verdict th[scope=row] { font-size: 1rem; background: var(--card); }
  .verdict td::before { content: attr(data-title); display: block; color: var(--soft);
    font-size: .8rem; }
}
@media print {
  body { max-width: none; font-size: 10pt; padding: 0; }
  nav { display: none; }
  h2, h3, h3 + .soft { break-after: avoid; }
  .verdict { font-size: 6.5pt; }
  .verdict th, .verdict td { padding: .15rem .2rem; }
  .verdict th[scope=row] { overflow-wrap: anywhere; min-width: 5.5rem; }
  .verdict small { font-size: 5.5pt; }
  .grid { font-size: 7pt; }
  .grid img { width: 3.5rem; }
  .grid thead th { max-width: 3.5rem; }
  figure, tr { break-inside: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
<p>{{ summary }}</p>
<nav>{% for section in sections %}<a href="#{{ section.name }}">{{ section.title }}</a>{% endfor %}
<a href="#methods">Methods</a><a href="#settings">Settings</a></nav>
</header>
<main>
<h2 id="verdict">Verdict</h2>
<p>These tests decide whether a method can be trusted on this model:
{% for check in checks if check.decides %}{{ check.title|lower }}{{ ", " if not loop.last }}
{%- endfor %}.
A method that fails one of them shows something else than what the model used. Passing them is no
proof that an explanation is right. The other columns describe. The best are first: by tests
passed{% for check in checks if check.breaks_ties %}, then by {{ check.head or check.title }}
{%- endfor %}.</p>
<div class="wide">
<table class="verdict">
<thead><tr><th>Method</th><th>Verdict</th>
{% for check in checks %}<th>{{ check.title }} <small>{{ check.unit }}</small></th>
{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}<tr>
<th scope="row">{{ row.method }}</th>
<td data-title="Verdict" class="{{ row.style }}"><b>{{ row.trust }}</b>
<small>{{ row.passed }} of {{ row.measured }} tests</small></td>
{% for cell in row.cells %}<td data-title="{{ cell.title }}" class="{{ cell.style }}">
{% if cell.text %}<b>{{ cell.text }}</b>{% endif %} {{ cell.word }}
{% if cell.details %}<small>{{ cell.details }}</small>{% endif %}</td>
{% endfor %}</tr>
{% endfor %}</tbody>
</table>
</div>
<p class="soft">{{ thresholds }} In brackets: {{ intervals }}.</p>
<details><summary>What the columns mean</summary>
<dl>{% for check in checks %}<dt>{{ check.title }}</dt><dd>{{ check.meaning }}
{% if check.unit %}Number: {{ check.unit }}.{% endif %}</dd>{% endfor %}</dl>
</details>
{% if left_out %}<details><summary>Not audited: {{ left_out|length }} of the methods</summary>
<dl>{% for name, reason in left_out.items() %}<dt>{{ name }}</dt><dd>{{ reason }}</dd>
{% endfor %}</dl></details>{% endif %}
{% for section in sections %}
<h2 id="{{ section.name }}">{{ section.title }}</h2>
<p>{{ section.text }}{% for paper in section.papers %} {{ link(paper) }}{% endfor %}</p>
{% for note in section.notes[:2] %}<p class="soft">{{ note }}</p>{% endfor %}
{% if section.notes|length > 2 %}<details>
<summary>More notes: {{ section.notes|length - 2 }}</summary>
{% for note in section.notes[2:] %}<p class="soft">{{ note }}</p>{% endfor %}</details>{% endif %}
{% for gallery in section.galleries %}
<h3>{{ gallery.title }}</h3>
<p class="soft">{{ gallery.text }}</p>
<div class="maps">{% for picture in gallery.pictures %}
<figure><img src="{{ picture.source }}" alt="{{ picture.alt }}">
<figcaption>{{ picture.caption }}</figcaption></figure>{% endfor %}
</div>
{% endfor %}
{% for picture in section.pictures %}
<figure><div class="wide"><img src="{{ picture.source }}" alt="{{ picture.alt }}"></div>
<figcaption>{{ picture.caption }}</figcaption></figure>
{% endfor %}
{% for grid in section.grids %}
<details{% if loop.first %} open{% endif %}><summary>{{ grid.title }}</summary>
<div class="wide"><table class="grid">
<thead><tr><th>Method</th>{% for name in grid.columns %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in grid.rows %}<tr><th scope="row">{{ row.name }}</th>
{% for map in row.maps %}<td>{% if map %}<img src="{{ map.source }}" alt="{{ map.alt }}">
<small>{{ map.caption }}</small>{% else %}not finite{% endif %}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div></details>
{% endfor %}
{% if section.reasons %}<details>
<summary>Not measured: {{ section.reasons|length }} of the methods</summary>
<dl>{% for name, reason in section.reasons.items() %}<dt>{{ name }}</dt><dd>{{ reason }}</dd>
{% endfor %}</dl></details>{% endif %}
{% endfor %}
{% if missing %}<h2 id="missing">Audits that were left out</h2>
<dl>{% for title, reason in missing.items() %}<dt>{{ title }}</dt><dd>{{ reason }}</dd>
{% endfor %}</dl>{% endif %}
<h2 id="methods">Methods</h2>
<p>Most methods share the explained output among the inputs of each layer, from the last layer to
the first. A contribution is an input of a layer times its weight; a rectifier is a ReLU. For each
method: what it computes, where it was published, and the rule that it uses at each operation of
the model.</p>
{% for method in methods %}
<details><summary><b>{{ method.name }}</b>: {{ method.summary }}</summary>
<ul>{% for paper in method.papers %}<li>{{ link(paper) }}</li>{% endfor %}</ul>
{% if method.options %}<p class="soft">Options: <code>{{ method.options }}</code></p>{% endif %}
{% if method.rows %}<div class="wide"><table>
<thead><tr><th>Call</th><th>Operation</th><th>Rule</th></tr></thead>
<tbody>{% for row in method.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% endif %}
</details>
{% endfor %}
<h2 id="settings">Settings</h2>
<dl>{% for name, value in settings.items() %}<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}</dl>
{% if notes %}<ul>{% for note in notes %}<li>{{ note }}</li>{% endfor %}</ul>{% endif %}
<details><summary>Settings of each audit, and the time it took</summary>
<div class="wide"><table><thead><tr><th>Audit</th><th>Settings</th><th>Seconds</th></tr></thead>
<tbody>{% for one in timed %}<tr><td>{{ one.name }}</td><td><code>{{ one.settings }}</code></td>
<td>{{ one.seconds }}</td></tr>{% endfor %}</tbody></table></div></details>
</main>
</body>
</html>
"""
