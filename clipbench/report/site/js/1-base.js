// What the other scripts share: data, elements made of text alone, numbers as people read them.

const page = JSON.parse(document.getElementById("data").textContent);
const { models, tasks, suites, scores, reported } = page.index;
const DASH = "–";

/** An element with attributes and children; strings become text, never markup. */
function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return made;
}

/** The content of a block, or null where the page was too large to hold it. */
async function block(name) {
  const text = page.blocks[name];
  if (text === undefined) return null;
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

const isRank = (metric) => metric.endsWith("_rank");
const count = (n) => n.toLocaleString("en");
const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;

/** A score with the decimals of its kind; a dash for what is missing. */
function num(value, metric = "") {
  if (value === null || value === undefined) return DASH;
  return isRank(metric) ? value.toFixed(1) : value.toFixed(2);
}

/** A published percentage with the decimals that its source printed. */
const asPrinted = (percent) => (Math.round(percent * 10) / 10 === percent ? percent.toFixed(1) : percent.toFixed(2));

/** Training pairs (given in millions) as people write them. */
function pairsText(millions) {
  if (millions === null || millions === undefined) return DASH;
  for (const [factor, unit] of [[1e3, "B"], [1, "M"], [1e-3, "k"]]) {
    if (millions >= factor) return `${Number((millions / factor).toPrecision(3))} ${unit}`;
  }
  return String(Math.round(millions * 1e6));
}

/** The families of the page, measured or reported, in a fixed order: each keeps its colour and its shape. */
const groups = [...new Set([...models.map((m) => m.group), ...reported.map((r) => r[1])])].sort();

const modelHref = (id) => `#/model/${encodeURIComponent(id)}`;
const taskHref = (id) => `#/task/${encodeURIComponent(id)}`;

/** A table: `columns` are [heading, class], `rows` are lists of cells (text or nodes), the first one a heading. */
function table(label, columns, rows) {
  const head = columns.map(([text, kind]) => el("th", { scope: "col", class: kind }, text));
  const body = rows.map((cells) => el("tr", {}, cells.map((cell, i) =>
    el(i ? "td" : "th", { scope: i ? null : "row", class: columns[i][1] }, cell))));
  return el("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": `${label}, scrolls sideways` },
    el("table", {}, el("caption", { class: "unseen" }, label), el("thead", {}, el("tr", {}, head)), el("tbody", {}, body)));
}

/** A definition list of [name, text or node]; pairs without a value are left out. */
function facts(pairs) {
  const kept = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return el("dl", { class: "facts" }, kept.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}
