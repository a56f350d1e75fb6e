"use strict";
// The browser of instances. Texts come from models and judges: they are set as text, never as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const h = (tag, props = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name in element && name !== "style") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== ""));
  return element;
};
const show = (value) => (value === null || value === undefined ? "–" : value.toFixed(2).replace("-", "−"));
const short = (value) => (value === null || value === undefined ? "–" : String(+value.toFixed(2)));

// Shades: orange for 0, grey for the middle, blue for 1.
const shade = (value) => `--end: var(--${value < 0.5 ? "low" : "high"}); --share: ${Math.round(Math.min(1, Math.abs(value - 0.5) * 2) * 100)}%`;
const fill = (value) => (value === null ? "background: var(--rule)" : `${shade(value)}; background: color-mix(in oklab, var(--end) var(--share), var(--mid)); box-shadow: inset 0 0 0 1px color-mix(in srgb, var(--ink) 14%, transparent)`);
const merit = (criterion, score) => (criterion.penalty ? 1 - score : score);
const broken = (name) => name.split(/(?<=[_.-])/).flatMap((part, i) => (i ? [h("wbr"), part] : [part]));
const plain = (name) => name.replaceAll("_", " ");

const rubricOf = (one) => (one.rubric === null ? null : data.rubrics[one.rubric]);
const rewards = (one, axis) => one.responses.map((r) => (axis === "" ? r.total : r.axes[axis])).filter((v) => v !== null && v !== undefined);
const statistics = {
  mean: (values) => values.reduce((a, b) => a + b, 0) / values.length,
  low: (values) => Math.min(...values),
  high: (values) => Math.max(...values),
  spread: (values) => Math.max(...values) - Math.min(...values),
};
const statistic = (one, axis, name) => {
  const values = rewards(one, axis);
  return values.length ? statistics[name](values) : null;
};
const words = new Map(); // the text that a search looks through, lower case
const wordsOf = (one) => {
  if (!words.has(one)) {
    const rubric = rubricOf(one);
    const parts = [one.id, one.text, one.answer, ...one.responses.map((r) => r.text), ...(rubric ? rubric.criteria.map((c) => `${c.id} ${c.text}`) : [])];
    words.set(one, parts.join("\n").toLowerCase());
  }
  return words.get(one);
};

// The list. Pictures are decoded when they come into view.
const picture = (index, props) => {
  const image = h("img", { ...props, decoding: "async" });
  image.addEventListener("load", () => image.classList.toggle("pixels", image.naturalWidth <= 96));
  image.dataset.index = index;
  return image;
};
const load = (image) => { image.src = data.pictures[image.dataset.index]; };
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seen.unobserve(entry.target);
    load(entry.target);
  }
}, { rootMargin: "300px" });
const item = (one, index) => {
  const thumb = one.pictures.length ? picture(one.pictures[0], { className: "thumb", alt: "" }) : h("span", { className: "thumb" });
  if (one.pictures.length) seen.observe(thumb);
  const totals = one.responses.map((r) => r.total).sort((a, b) => (b ?? -1) - (a ?? -1));
  const mean = statistic(one, "", "mean");
  const paired = one.pairs === null ? "" : one.pairs.length ? "pair" : "no pair";
  return h("div", { className: "item", role: "option", id: `item-${index}`, "aria-selected": "false" },
    thumb,
    h("span", { className: "ask" }, one.text || one.id),
    h("span", { className: "line" },
      h("span", { className: "strip", title: "reward of each response" }, totals.slice(0, 16).map((t) => h("i", { style: fill(t) }))),
      h("span", {}, [mean === null ? "no reward" : `mean ${show(mean)}`, paired].filter(Boolean).join(" · "))));
};

// One instance.
const tagsOf = (one, k) => {
  const names = new Set((one.pairs ?? []).flatMap((pair) => Object.keys(pair.sample).filter((name) => pair.sample[name] === k)));
  return [...names].sort();
};
const tag = (name) => h("span", { className: `tag ${["chosen", "rejected"].includes(name) ? name : ""}` }, plain(name));
const tagsLine = (one, k) => [
  ...tagsOf(one, k).map(tag),
  one.responses[k].status === "scored" ? "" : h("span", { className: "tag status" }, one.responses[k].status),
];
const highlighted = (text, needle) => {
  if (!needle) return [text];
  const lower = text.toLowerCase(), parts = [];
  let from = 0;
  for (let to = lower.indexOf(needle); to >= 0 && lower.length === text.length; to = lower.indexOf(needle, from)) {
    parts.push(text.slice(from, to), h("mark", {}, text.slice(to, to + needle.length)));
    from = to + needle.length;
  }
  return [...parts, text.slice(from)];
};

const heat = (one, rubric, order) => {
  const inspect = h("div", { className: "inspect", role: "status" });
  const rest = () => inspect.replaceChildren(h("p", { className: "quiet" }, "Point at a cell, or move to one with the arrow keys, for the criterion and the judge's reason."));
  rest();
  const explain = (k, c) => {
    const r = one.responses[k], criterion = rubric.criteria[c];
    inspect.replaceChildren(
      h("p", {}, h("strong", {}, `#${k + 1} · ${criterion.id}: ${short(r.scores[c])}`), ` ${criterion.text}`),
      h("p", { className: "quiet" }, r.reasons[c] || (r.scores[c] === null ? r.problems.join("; ") || r.status : "The judge gave no reason.")));
  };
  const cell = (k, c) => {
    const score = one.responses[k].scores[c], criterion = rubric.criteria[c];
    const td = h("td", { className: score === null ? "cell none" : "cell", tabIndex: -1, title: `${criterion.text}\n${one.responses[k].reasons[c]}` }, short(score));
    if (score !== null) td.setAttribute("style", shade(merit(criterion, score)));
    td.addEventListener("mouseenter", () => explain(k, c));
    td.addEventListener("focus", () => explain(k, c));
    return td;
  };
  const head = h("tr", {}, h("th", { scope: "col" }, "Response"),
    h("th", { scope: "col", className: "total", title: "total reward, by the run's aggregation" }, "reward"),
    rubric.criteria.map((c) => h("th", { scope: "col", title: c.text }, broken(c.id), h("small", {}, c.axis), h("small", {}, `${c.kind}\u00a0×\u00a0${short(c.weight)}${c.penalty ? ", a fault" : ""}`))));
  const body = order.map((k) => h("tr", {},
    h("th", { scope: "row" }, h("a", { href: `#response-${k}`, "data-response": k }, `#${k + 1}`), tagsLine(one, k)),
    h("td", { className: "total" }, show(one.responses[k].total)),
    rubric.criteria.map((_, c) => cell(k, c))));
  const table = h("table", { className: "heat" }, h("thead", {}, head), h("tbody", {}, body));
  const first = table.querySelector("td.cell");
  if (first) first.tabIndex = 0;
  table.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    const here = event.target.closest("td.cell");
    if (!step || !here) return;
    event.preventDefault();
    const next = table.rows[here.parentElement.rowIndex + step[0]]?.cells[here.cellIndex + step[1]];
    if (!next?.matches("td.cell")) return;
    here.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
  table.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-response]");
    if (!link) return;
    event.preventDefault();
    for (const lit of document.querySelectorAll(".lit")) lit.classList.remove("lit");
    const target = at(`response-${link.dataset.response}`);
    target.classList.add("lit");
    target.scrollIntoView({ block: "center" });
  });
  return [
    h("h3", {}, "Scores"),
    h("p", { className: "hint" }, h("span", { className: "scale" }, "not met ", h("i"), " met"), ". Responses in order of their reward; hatched: no score."),
    h("div", { className: "scroll", role: "region", "aria-label": "Scores by response and criterion", tabIndex: 0 }, table),
    inspect,
  ];
};
const criteria = (rubric, needle) => [
  h("h3", {}, "Rubric"),
  h("ul", { className: "criteria" }, rubric.criteria.map((c) => h("li", {},
    h("span", {}, h("code", {}, c.id), highlighted(c.text, needle)),
    h("span", { className: "tags" }, h("b", {}, c.kind), ` · weight ${short(c.weight)} · ${c.axis} · ${c.scale}${c.penalty ? " · a fault" : ""}`),
    c.levels ? h("small", {}, Object.entries(c.levels).map(([level, text]) => `${level}: ${text}`).join("  ")) : ""))),
  h("p", { className: "hint" }, rubric.source ? `Written by ${rubric.source}.` : ""),
];
const response = (one, k, needle) => {
  const r = one.responses[k], tags = tagsOf(one, k);
  const facts = [
    ...Object.entries(r.axes).map(([axis, value]) => `${axis} ${show(value)}`),
    r.tokens ? `${r.tokens} tokens` : "",
    r.finished ? "" : "cut at the limit",
  ].filter(Boolean).join(" · ");
  return h("section", { className: `response ${tags.map((name) => `is-${name}`).join(" ")}`, id: `response-${k}`, style: "padding-top: 11px !important" },
    h("header", {}, h("span", {}, h("strong", {}, `#${k + 1}`), tagsLine(one, k)), h("span", { className: "facts-line" }, facts), h("strong", {}, show(r.total))),
    h("p", { className: "said" }, r.text ? highlighted(r.text, needle) : h("span", { className: "quiet" }, "(empty)")),
    r.problems.length ? h("p", { className: "hint" }, `Judge: ${r.problems.join("; ")}`) : "");
};
const pairsText = (one) => {
  if (one.pairs === null) return "";
  if (!one.pairs.length) return `No pair${one.reason ? `: ${one.reason}` : ""}.`;
  return one.pairs.map((pair) => {
    const parts = Object.entries(pair.sample).map(([name, k]) => `${plain(name)} #${k + 1}${name in pair.total ? ` (${show(pair.total[name])})` : ""}`);
    return `${parts.join(", ")}${pair.axis ? `, ordered by ${pair.axis}` : ""}`;
  }).join("\n");
};
const detail = (one, position, needle) => {
  const rubric = rubricOf(one);
  const order = one.responses.map((_, k) => k).sort((a, b) => (one.responses[b].total ?? -Infinity) - (one.responses[a].total ?? -Infinity) || a - b);
  const media = one.pictures.map((p, i) => { const image = picture(p, { alt: `Picture ${i + 1} of ${one.id}` }); load(image); return image; });
  const known = [["Right answer", one.answer], ["Reference", one.reference], ["Pairs mined", pairsText(one)]].filter(([, value]) => value);
  const step = (label, by, off) => { const b = h("button", { type: "button", disabled: off }, label); b.addEventListener("click", () => move(by)); return b; };
  return [
    h("div", { className: "bar-top" }, h("span", {}, one.id), h("div", {}, step("← Previous", -1, position <= 0), step("Next →", 1, position >= shown.length - 1))),
    h("div", { className: "asked" },
      media.length ? h("div", { className: "media" }, media) : "",
      h("div", { className: "words" },
        h("p", { className: "question" }, one.text ? highlighted(one.text, needle) : "Instruction unknown"),
        h("dl", { className: "known" }, known.map(([title, value]) => h("div", {}, h("dt", {}, title), h("dd", {}, value)))))),
    rubric ? heat(one, rubric, order) : h("p", { className: "quiet" }, "Not judged."),
    h("h3", {}, `${one.responses.length} responses`),
    order.map((k) => response(one, k, needle)),
    rubric ? criteria(rubric, needle) : "",
  ].flat();
};

// Filters and selection.
let shown = [], selected = null;
const items = new Map(); // instance -> its element, made once
const option = (value, label) => h("option", { value }, label);
const readFilters = () => ({
  needle: at("search").value.trim().toLowerCase(),
  paired: at("paired").value, status: at("status").value, axis: at("axis").value, statistic: at("statistic").value,
  from: at("from").value === "" ? -Infinity : +at("from").value, to: at("to").value === "" ? Infinity : +at("to").value,
});
const matches = (one, f) => {
  if (f.needle && !wordsOf(one).includes(f.needle)) return false;
  if (f.paired === "some" && !one.pairs.length) return false;
  if (f.paired === "none" && one.pairs.length) return false;
  if (f.paired.startsWith("reason:") && one.reason !== f.paired.slice(7)) return false;
  if (f.status === "all scored" && !one.responses.every((r) => r.status === "scored")) return false;
  if (f.status.startsWith("has:") && !one.responses.some((r) => r.status === f.status.slice(4))) return false;
  if (f.from === -Infinity && f.to === Infinity) return true;
  const value = statistic(one, f.axis, f.statistic);
  return value !== null && value >= f.from - 1e-9 && value <= f.to + 1e-9;
};
const update = () => {
  const f = readFilters(), order = at("order").value;
  shown = data.instances.filter((one) => matches(one, f));
  if (order) {
    const value = new Map(shown.map((one) => [one, statistic(one, f.axis, f.statistic)]));
    const worst = order === "up" ? Infinity : -Infinity;
    shown.sort((a, b) => ((value.get(a) ?? worst) - (value.get(b) ?? worst)) * (order === "up" ? 1 : -1) || 0);
  }
  at("matches").textContent = `${shown.length} of ${data.instances.length} match`;
  at("list").replaceChildren(...(shown.length ? shown.map((one) => items.get(one)) : [h("p", { className: "empty" }, "Nothing matches. Clear a filter to see more.")]));
  select(shown.includes(selected) ? selected : shown[0] ?? null, { fresh: true });
};
const select = (one, { fresh = false, remember = !fresh } = {}) => {
  if (one === selected && !fresh) return;
  items.get(selected)?.setAttribute("aria-selected", "false");
  selected = one;
  const element = items.get(one);
  element?.setAttribute("aria-selected", "true");
  at("list").setAttribute("aria-activedescendant", element?.id ?? "");
  at("detail").replaceChildren(...(one ? detail(one, shown.indexOf(one), readFilters().needle) : []));
  if (!one) return;
  const list = at("list"), top = element.offsetTop - list.offsetTop;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + element.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = top + element.offsetHeight - list.clientHeight;
  if (remember) history.replaceState(null, "", `#instance=${encodeURIComponent(one.id)}`);
};
const move = (by) => {
  const next = shown[shown.indexOf(selected) + by];
  if (next) select(next);
};
const fromHash = () => {
  const id = location.hash.startsWith("#instance=") ? decodeURIComponent(location.hash.slice(10)) : null;
  const one = id === null ? null : data.instances.find((i) => i.id === id);
  if (!one) return false;
  if (!shown.includes(one)) { at("filters").reset(); update(); }
  select(one);
  return true;
};
const start = () => {
  const statuses = [...new Set(data.instances.flatMap((one) => one.responses.map((r) => r.status)))].filter((s) => s !== "scored").sort();
  const reasons = [...new Set(data.instances.map((one) => one.reason).filter(Boolean))].sort();
  at("paired").append(option("", "any"));
  if (data.instances.some((one) => one.pairs !== null)) at("paired").append(option("some", "gave a pair"), option("none", "gave none"), ...reasons.map((r) => option(`reason:${r}`, `none: ${r}`)));
  else at("paired").disabled = true;
  at("status").append(option("", "any"), option("all scored", "all scored"), ...statuses.map((s) => option(`has:${s}`, `some ${s}`)));
  at("axis").append(option("", "total"), ...data.axes.map((axis) => option(axis, axis)));
  data.instances.forEach((one, index) => {
    const element = item(one, index);
    element.addEventListener("click", () => {
      select(one);
      if (matchMedia("(max-width: 860px)").matches) at("detail").scrollIntoView();
    });
    items.set(one, element);
  });
  for (const kind of ["input", "change"]) at("filters").addEventListener(kind, update);
  at("filters").addEventListener("submit", (event) => event.preventDefault());
  at("filters").addEventListener("reset", () => setTimeout(update));
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey) return;
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const near = event.target.closest?.("#list");
    if (!by || !near) return;
    event.preventDefault();
    move(by);
  });
  window.addEventListener("hashchange", fromHash);
  update();
  if (fromHash()) at("browser").scrollIntoView();
};
if (data.instances.length) start();
