// The pages of a model and of a task, and the chart of data efficiency.

const LEFT_OUT = "Left out of this page to keep it small; the record has it.";
/** Bars of more classes than this would be a wall: both ends are drawn, and the table has all. */
const MOST_BARS = 60, EACH_END = 30;
/** Models in a task's chart, of the best ones. */
const MOST_DOTS = 60;

function verdictNode(verdict) {
  if (!verdict) return DASH;
  return el("span", { class: verdict.startsWith("off") ? "bad" : "good" }, verdict);
}

function marks(record) {
  const held = [
    record.limit !== null && `limited to ${count(record.limit)} samples`,
    record.partial && "partial copy of the data",
    record.dirty && "uncommitted changes",
    record.skipped > 0 && `${plural(record.skipped, "image")} skipped`,
  ];
  return held.filter(Boolean).join(", ");
}

/** Text with its addresses as links. */
function linked(text) {
  return text.split(/(https?:\/\/[^\s;,)]+)/).map((part, i) => (i % 2 ? el("a", { href: part, rel: "noreferrer" }, part) : part));
}

async function picture(key, words) {
  const found = await block(key);
  if (!found) return el("p", { class: "note" }, `${words}. ${LEFT_OUT}`);
  return el("figure", {}, el("img", { src: found.src, width: found.width, height: found.height, alt: words }), el("figcaption", {}, words));
}

// ------------------------------------------------------------------- a model

async function modelView(model) {
  const i = models.indexOf(model);
  const data = await block(`model/${i}`);
  const { card } = data;
  const rows = data.records.map((record) => ({ record, task: tasks[record.task], primary: record.scores[0] }));
  const drawn = rows.filter(({ primary }) => !isRank(primary[0])).map(({ record, task, primary }) => ({
    name: task.id + (record.off ? " (kept off)" : ""),
    value: primary[1], low: primary[2], high: primary[3], chance: primary[5], reported: primary[6],
  }));
  const lines = rows.map(({ record, task, primary: [metric, value, low, high, n, chance, told, , , verdict] }) => [
    el("a", { href: taskHref(task.id) }, task.id), metric, num(value, metric), `${num(low, metric)} … ${num(high, metric)}`,
    told === null ? DASH : asPrinted(told), verdictNode(verdict), num(chance, metric), count(n),
    record.off || marks(record),
  ]);
  const columns = [["Task"], ["Metric"], ["Value %", "number"], ["95 % interval", "number"], ["Reported", "number"],
    ["Compared"], ["Chance", "number"], ["n", "number"], ["Remarks", "wrap"]];
  const titles = [el("h1", { tabindex: "-1" }, model.id), el("p", { class: "lead" }, card.title ?? "")];
  const about = facts([
    ["Family", model.group], ["Training pairs", model.pairs === null ? null : pairsText(model.pairs)],
    ["Training data", card.training_data],
    ["Trained on", card.trained_on?.map((one) => [one.dataset ?? one.name, one.split].filter(Boolean).join(" ")).join(", ")],
    ["Paper", card.paper && linked(card.paper)], ["Licence", card.licence],
    ["Weights", Object.entries(card.weights ?? {}).filter(([, v]) => v).map(([k, v]) => `${k}: ${v}`).join("; ")],
    ["Links", card.links?.length ? card.links.flatMap((link) => [...linked(link), " "]) : null], ["Notes", card.notes && linked(card.notes)],
  ]);
  const parts = [...titles, about, el("h2", {}, "Scores over tasks"),
    dots(`Scores of ${model.id}: ${plural(drawn.length, "task")}, each with its 95 % interval`, drawn, "main metric, per cent"),
    table(`Main metric of ${model.id} on each task`, columns, lines)];
  if (data.training) parts.push(el("h2", {}, "Training"), await picture(data.training, `Training curves of ${model.id}`));
  parts.push(el("h2", {}, "Records"), el("p", { class: "faint" }, "Every score, how it came about, and where it comes from."));
  const curves = await block(`curves/${i}`);
  for (const row of rows) parts.push(recordDetails(model, row, data, curves));
  return parts;
}

/** One record, filled when it is opened. */
function recordDetails(model, { record, task }, data, curves) {
  const box = el("details", {}, el("summary", {}, task.id, el("span", { class: "faint" }, ` ${record.off ? `kept off: ${record.off}` : marks(record)}`)));
  box.addEventListener("toggle", async () => {
    if (!box.open || box.children.length > 1) return;
    const columns = [["Metric"], ["Value", "number"], ["95 % interval", "number"], ["Chance", "number"], ["n", "number"],
      ["Reported", "number"], ["Compared"], ["Source", "wrap"]];
    const lines = record.scores.map(([metric, value, low, high, n, chance, told, confidence, source, verdict]) => [
      metric, num(value, metric), `${num(low, metric)} … ${num(high, metric)}`, num(chance, metric), count(n),
      told === null ? DASH : asPrinted(told), verdictNode(verdict), source ? `${source} (${confidence})` : DASH,
    ]);
    box.append(table(`All scores on ${task.id}`, columns, lines));
    if (record.curve) {
      const words = `How the probe’s penalty was chosen on ${task.id}`;
      const found = curves?.[record.task];
      box.append(el("h3", {}, words), found
        ? el("p", { class: "faint" }, "A star marks what was chosen; hollow points did not converge.")
        : el("p", { class: "note" }, LEFT_OUT));
      if (found) box.append(probePath(`${words}: penalty against validation score`, found));
    }
    if (record.picture) box.append(el("h3", {}, "Heat maps"), await picture(record.picture,
      `Heat maps of ${model.id} on ${task.id}: expressions, maps, true boxes, and the pixels pointed at`));
    const where = data.environments[record.environment];
    box.append(el("h3", {}, "Provenance"), facts([
      ["Record", el("code", {}, record.path)], ["Made", record.created], ["Protocol", `${task.protocol}, version ${record.version}`],
      ["Commit", record.commit ? `${record.commit}${record.dirty ? ", with uncommitted changes" : ""}` : "unknown"],
      ["Seed", String(record.seed)], ["Limit", record.limit === null ? "none" : count(record.limit)],
      ["Precision", `${record.precision} on ${where.device}`], ["Time", `${record.seconds} s`],
      ["Python", `${where.python} on ${where.platform}`],
      ["Packages", Object.entries(where.packages).map(([k, v]) => `${k} ${v}`).join(", ")],
      ["Fingerprints", Object.entries(record.fingerprints).map(([k, v]) => `${k} ${v}…`).join(", ")],
    ]));
  });
  return box;
}

// -------------------------------------------------------------------- a task

async function taskView(task) {
  const j = tasks.indexOf(task);
  const data = await block(`task/${j}`);
  const { card } = data;
  const own = scores.filter(([, t]) => t === j).map(([m, , value, low, high, n, chance, told]) =>
    ({ model: models[m], m, name: models[m].id, value, low, high, n, chance, reported: told }));
  own.sort((a, b) => (task.less ? a.value - b.value : b.value - a.value));
  const parts = [el("h1", { tabindex: "-1" }, task.id), el("p", { class: "lead" }, card.title ?? ""),
    facts([
      ["Main metric", task.metric], ["Protocol", `${task.protocol}, version ${task.versions.join(" and ")}`],
      ["Classes", data.classes ? count(data.classes) : null], ["About", card.description], ["Home", card.homepage && linked(card.homepage)],
      ["Notes", card.notes && linked(card.notes)],
    ]), el("h2", {}, "Models")];
  if (!own.length) parts.push(el("p", { class: "note" }, "Every record of this task is kept off the leaderboard."));
  else {
    const top = own.slice(0, MOST_DOTS);
    if (top.length < own.length) parts.push(el("p", { class: "faint" }, `The chart shows the best ${MOST_DOTS} models, the table all ${own.length}.`));
    parts.push(dots(`${task.metric} of ${plural(top.length, "model")} on ${task.id}, each with its 95 % interval`, top, `${task.metric}, per cent`),
      table(`Models on ${task.id}, best first`, [["Model"], ["Family"], ["Pairs", "number"], ["Value %", "number"], ["95 % interval", "number"], ["Rank", "number"], ["Reported", "number"], ["n", "number"]],
        own.map((r) => [el("a", { href: modelHref(r.name) }, r.name), r.model.group, pairsText(r.model.pairs), num(r.value),
          `${num(r.low)} … ${num(r.high)}`, String(data.ranks[r.m] ?? DASH), r.reported === null ? DASH : asPrinted(r.reported), count(r.n)])),
      el("ul", { class: "faint" }, data.rank_notes.map((note) => el("li", {}, note))));
    const perClass = await block(`classes/${j}`);
    if (perClass) parts.push(...classBars(task, own, perClass));
    else if (page.left_out.includes(`classes/${j}`)) parts.push(el("h2", {}, "By class"), el("p", { class: "note" }, LEFT_OUT));
  }
  parts.push(el("h2", {}, "Protocol"));
  if (data.about) parts.push(el("pre", {}, data.about));
  if (data.parameters) parts.push(el("pre", {}, data.parameters));
  parts.push(el("h3", {}, "Parameters of this task"), facts(Object.entries(data.params).map(([k, v]) =>
    [k, v === null ? "none" : typeof v === "object" ? JSON.stringify(v) : String(v)])));
  if (data.prompts) parts.push(el("details", {}, el("summary", {}, plural(data.prompts.length, "prompt")), el("ul", {}, data.prompts.map((p) => el("li", {}, p)))));
  return parts;
}

/** Bars of one model's classes, lowest first, with a choice of model and metric. */
function classBars(task, own, perClass) {
  // That of the main metric first: map_area is the mean of ap_area.
  const metrics = Object.keys(perClass).sort((a, b) => task.metric.endsWith(b) - task.metric.endsWith(a));
  const host = el("div", { class: "tall" });
  const holders = (metric) => own.filter((r) => perClass[metric].values[r.m]);
  const metric = el("select", { id: "class-metric" }, metrics.map((m) => el("option", {}, m)));
  const model = el("select", { id: "class-model" });
  function draw() {
    const { classes, values } = perClass[metric.value];
    const held = values[Number(model.value)].map((v, i) => ({ name: classes[i], value: v === null ? null : v / 10 }));
    const rows = held.filter((r) => r.value !== null).sort((a, b) => a.value - b.value);
    const ends = rows.length > MOST_BARS ? [...rows.slice(0, EACH_END), ...rows.slice(-EACH_END)] : rows;
    const unscored = held.length - rows.length;
    const said = [
      ends.length < rows.length && `The lowest and the highest ${EACH_END} of ${count(rows.length)} classes; the table has all.`,
      unscored > 0 && `${plural(unscored, "class").replace("classs", "classes")} could not be scored.`,
    ].filter(Boolean).join(" ");
    host.replaceChildren(...(said ? [el("p", { class: "faint" }, said)] : []),
      bars(`${metric.value} of ${models[Number(model.value)].id} on each class of ${task.id}, lowest first`, ends, `${metric.value}, per cent`),
      el("details", { class: "no-print" }, el("summary", {}, "All classes as a table"),
        table("Every class", [["Class"], ["Per cent", "number"]], rows.map((r) => [r.name, r.value.toFixed(1)]))));
  }
  function fill() {
    model.replaceChildren(...holders(metric.value).map((r) => el("option", { value: r.m }, r.name)));
    draw();
  }
  metric.addEventListener("input", fill);
  model.addEventListener("input", draw);
  fill();
  return [el("h2", {}, "By class"), el("div", { class: "filters" },
    el("label", {}, "Model ", model), el("label", {}, "Metric ", metric)), host];
}

// ----------------------------------------------------------- data efficiency

const efficiency = (() => {
  const choice = document.getElementById("efficiency-task");
  const host = document.getElementById("efficiency-chart");
  const points = new Map();
  const add = (task, point) => points.set(task, [...(points.get(task) ?? []), point]);
  for (const [m, t, value, low, high] of scores) {
    const { id, group, pairs } = models[m];
    if (pairs !== null) add(tasks[t].id, { model: id, group, pairs, value, low, high, source: "this benchmark" });
  }
  const metric = new Map(tasks.map((t) => [t.id, t.metric]));
  for (const [model, group, pairs, task, of, value, source] of reported) {
    metric.set(task, of);
    add(task, { model, group, pairs, value, source });
  }
  const known = [...points.keys()].sort((a, b) => points.get(b).length - points.get(a).length || (a < b ? -1 : 1));
  choice.append(...known.map((task) => el("option", { value: task }, `${task} (${points.get(task).length})`)));

  function draw() {
    const task = choice.value;
    if (!task) {
      host.replaceChildren(el("p", { class: "note" }, "No model with known training pairs has a score."));
      return;
    }
    const own = points.get(task);
    const rows = [...own].sort((a, b) => a.pairs - b.pairs || b.value - a.value).map((p) => [
      p.model, p.group, pairsText(p.pairs), p.low === undefined ? asPrinted(p.value) : num(p.value),
      p.low === undefined ? DASH : `${num(p.low)} … ${num(p.high)}`, p.source,
    ]);
    host.replaceChildren(
      scatter(`${metric.get(task)} on ${task} against training pairs: ${plural(own.length, "model")}`, own, metric.get(task)),
      el("details", { class: "no-print" }, el("summary", {}, "These points as a table"),
        table(`${task} against training pairs`, [["Model"], ["Family"], ["Pairs", "number"], ["Per cent", "number"], ["95 % interval", "number"], ["Source", "wrap"]], rows)));
  }
  choice.addEventListener("input", draw);
  return { draw };
})();
