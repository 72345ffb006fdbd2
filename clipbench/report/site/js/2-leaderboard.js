// The leaderboard: sorting, filtering, the mean over a suite, published numbers, and wide tables on paper.

const leaderboard = (() => {
  const shell = document.getElementById("leaderboard");
  const body = shell.tBodies[0];
  const heads = [...shell.tHead.rows[0].cells];
  const MOST_SOURCES = 8; // that are named above the table; the others with their numbers
  const MEAN = 3, FIRST = 4; // columns: model, family, pairs, mean, then one a task
  const columns = heads.slice(FIRST).map((head) => head.firstElementChild.textContent);
  const less = columns.map((id) => tasks.find((task) => task.id === id).less);
  const place = new Map(columns.map((id, i) => [id, i]));
  const number = new Map(models.map((m, i) => [m.id, i]));
  const rows = [...body.rows].map((row) => {
    const model = models[number.get(row.cells[0].textContent)];
    return { row, model, cells: [...row.cells], values: new Float64Array(columns.length).fill(NaN), mean: NaN };
  });
  const byModel = new Map(rows.map((r) => [r.model.id, r]));
  for (const [m, t, value] of scores) byModel.get(models[m].id).values[place.get(tasks[t].id)] = value;

  // Styled as plain boxes (see site.css), the parts of the table say themselves what they are.
  const roles = [[[shell], "table"], [[shell.tHead, body], "rowgroup"], [[...shell.rows], "row"], [heads, "columnheader"],
    [rows.map((r) => r.cells[0]), "rowheader"], [rows.flatMap((r) => r.cells.slice(1)), "cell"]];
  for (const [parts, role] of roles) for (const part of parts) part.setAttribute("role", role);

  const fields = Object.fromEntries(["model", "group", "suite", "task"].map((name) =>
    [name, document.getElementById(`${name}-filter`)]));
  const status = document.getElementById("count");
  let sorted = { key: "model", down: false };
  let shown = columns.map(() => true);

  // Published numbers: read when they are first asked for. Rows of models that were not measured here are hollow; they
  // have no interval, no rank, and are never the best.
  const asks = document.getElementById("published");
  let hollow = [];
  let told = null, reading = null;
  const about = (text, differs) => text + (differs ? `; ${differs}` : "");
  const every = () => (asks.checked ? [...rows, ...hollow] : rows);

  function hollowRow([id, numbers], i) {
    const values = new Float64Array(columns.length).fill(NaN);
    const cells = columns.map((_, c) => el("td", { role: "cell", hidden: !shown[c] }, DASH));
    const from = new Set();
    for (let n = 0; n < numbers.length; n += 3) {
      const [text, differs] = told.sources[numbers[n + 2]];
      const at = place.get(tasks[numbers[n]].id);
      if (at === undefined) continue;
      values[at] = numbers[n + 1];
      cells[at].textContent = asPrinted(numbers[n + 1]) + (differs ? "*" : "");
      cells[at].title = about(text, differs);
      from.add(differs ? `* ${columns[at]}: ${about(text, differs)}` : text);
    }
    const name = el("button", { type: "button", class: "source", title: id, "aria-haspopup": "dialog" }, `○ ${id}`);
    const lead = [el("th", { scope: "row", role: "rowheader" }, name), ...["published", DASH, DASH].map((text) => el("td", { role: "cell" }, text))];
    const row = el("tr", { class: "hollow", role: "row" }, lead, cells);
    name.addEventListener("click", () => tell(id, [...[...from].sort().reverse(), ...(row.cells[MEAN].title ? [row.cells[MEAN].title] : [])]));
    return { row, model: { id, title: "", group: "published", pairs: null }, cells: [...row.cells], values, mean: NaN, hollow: true, i };
  }

  /** Say where numbers are from, in a box that Escape or a click elsewhere closes. */
  function tell(name, lines) {
    const box = document.getElementById("source");
    box.replaceChildren(el("p", {}, el("strong", {}, `○ ${name}`)), ...lines.map((line) => el("p", {}, line)));
    box.showPopover();
  }

  async function read() {
    told = await block("published");
    hollow = told.models.map(hollowRow);
    for (const [m, t, percent, k] of told.beside) {
      const [text, differs] = told.sources[k];
      const cell = byModel.get(models[m].id)?.cells[FIRST + place.get(tasks[t].id)];
      cell?.append(el("span", { class: "told", title: about(text, differs) }, `○ ${asPrinted(percent)}${differs ? "*" : ""}`));
    }
    shell.classList.toggle("beside", told.beside.length > 0);
    const remarks = told.sources.some(([, differs]) => differs);
    document.getElementById("sources").replaceChildren(
      el("li", {}, "○ published by others, not measured here: no interval, and no part in ranks. Their names open their sources."),
      ...(remarks ? [el("li", {}, "* of other prompts or another copy of the data, or a mean with such numbers in it.")] : []),
      ...[...new Set(told.sources.map(([text]) => text))].slice(0, MOST_SOURCES).map((text) => el("li", {}, text)));
  }

  async function publish() {
    if (asks.checked) await (reading ??= read());
    document.getElementById("sources").hidden = !asks.checked;
    shell.classList.toggle("published", asks.checked);
    if (!asks.checked) for (const r of hollow) r.row.remove();
    filter();
    asks.checked && !heads[MEAN].hidden ? sort("mean", true) : sort(sorted.key, sorted.down);
  }

  body.addEventListener("click", ({ target }) => {
    if (target.matches(".told")) tell(`${target.closest("tr").cells[0].textContent}: ${target.textContent.slice(2)}`, [target.title]);
  });

  function keyOf(key) {
    if (key === "model") return (r) => r.model.id;
    if (key === "group") return (r) => r.model.group;
    if (key === "pairs") return (r) => r.model.pairs ?? NaN;
    if (key === "mean") return (r) => r.mean;
    return (r) => r.values[Number(key)];
  }

  /** Put the rows in order; models without a value come last in either direction, equals by name. By name and family
   * those that were not measured come last too. */
  function sort(key, down) {
    const of = keyOf(key);
    const texts = key === "model" || key === "group";
    const last = (value, r) => Number.isNaN(value) || (texts && Boolean(r.hollow));
    const order = every().map((r) => [of(r), r]);
    order.sort(([a, x], [b, y]) => {
      const gap = last(a, x) - last(b, y);
      if (gap) return gap;
      const way = a < b ? -1 : a > b ? 1 : 0;
      return (down ? -way : way) || (x.model.id < y.model.id ? -1 : 1);
    });
    const sheet = document.createDocumentFragment();
    for (const [, r] of order) sheet.append(r.row);
    body.append(sheet);
    for (const head of heads) head.removeAttribute("aria-sort");
    heads.find((head) => head.firstElementChild.dataset.key === key).setAttribute("aria-sort", down ? "descending" : "ascending");
    sorted = { key, down };
  }

  shell.tHead.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const key = button.dataset.key;
    // The first click puts the best on top, or the least where nothing is better.
    const down = key === "mean" || (Number(key) >= 0 && !less[Number(key)]);
    sort(key, sorted.key === key ? !sorted.down : down);
  });

  /** The columns of the chosen suite that the task filter leaves, and which tasks of the suite nobody measured. */
  function chosen() {
    const suite = fields.suite.value === "" ? null : suites[Number(fields.suite.value)];
    const wanted = suite && new Set(suite.tasks.filter((t) => t !== null).map((t) => tasks[t].id));
    const words = fields.task.value.trim().toLowerCase();
    return { suite, kept: columns.map((id) => (!wanted || wanted.has(id)) && id.toLowerCase().includes(words)) };
  }

  function filter() {
    const { suite, kept } = chosen();
    const covered = suite && fields.task.value.trim() === "" ? suite : null;
    kept.forEach((keep, i) => {
      if (keep === shown[i]) return;
      heads[FIRST + i].hidden = !keep;
      for (const r of [...rows, ...hollow]) r.cells[FIRST + i].hidden = !keep;
    });
    shown = kept;
    means(covered);
    const words = fields.model.value.trim().toLowerCase();
    let left = 0;
    for (const r of rows) {
      const keep = (!fields.group.value || r.model.group === fields.group.value)
        && `${r.model.id} ${r.model.title}`.toLowerCase().includes(words);
      r.row.hidden = !keep;
      left += keep;
    }
    let more = 0;
    for (const r of every().slice(rows.length)) {
      const has = !Number.isNaN(r.mean) || kept.some((keep, i) => keep && !Number.isNaN(r.values[i]));
      const keep = has && !fields.group.value && r.model.id.toLowerCase().includes(words);
      r.row.hidden = !keep;
      more += keep;
    }
    best();
    const unmeasured = covered ? covered.tasks.filter((t) => t === null).length : 0;
    status.textContent = `Showing ${count(left)} of ${plural(rows.length, "model")} and `
      + `${count(kept.filter(Boolean).length)} of ${plural(columns.length, "task")}.`
      + (unmeasured ? ` The suite has ${plural(unmeasured, "task")} more, without any record: no mean of models measured here.` : "")
      + (asks.checked ? ` ${plural(more, "model")} ${more === 1 ? "is" : "are"} published alone (○).` : "");
    const hidden = (Number(sorted.key) >= 0 && !shown[Number(sorted.key)]) || (sorted.key === "mean" && heads[MEAN].hidden);
    if (hidden) sort("model", false);
    else if (sorted.key === "mean") sort("mean", sorted.down);
  }

  /** The mean of a suite for models that have all of it: a mean over fewer tasks would compare with nothing. */
  function means(suite) {
    const whole = suite && suite.tasks.length > 1 && suite.tasks.every((t) => t !== null && !tasks[t].less);
    const theirs = (suite && asks.checked && told?.means[suite.id]) || {};
    const seen = whole || Object.keys(theirs).length > 0;
    heads[MEAN].hidden = !seen;
    if (seen) document.getElementById("mean-of").textContent = `of all ${suite.tasks.length} tasks`;
    const of = whole ? suite.tasks.map((t) => place.get(tasks[t].id)) : [];
    for (const r of rows) {
      r.mean = whole ? of.reduce((sum, i) => sum + r.values[i], 0) / of.length : NaN;
      r.cells[MEAN].hidden = !seen;
      r.cells[MEAN].textContent = Number.isNaN(r.mean) ? DASH : r.mean.toFixed(2);
      if (whole && suite.ranks[r.model.id]) r.cells[MEAN].append(el("span", { class: "under" }, `rank ${suite.ranks[r.model.id]}`));
      if (!whole || !suite.means[r.model.id]) continue;
      const interval = document.createElement("i");
      interval.textContent = suite.means[r.model.id];
      interval.hidden = !shows.checked;
      r.cells[MEAN].firstChild.after(interval);
    }
    for (const r of hollow) {
      const [mean, differ] = theirs[r.i] ?? [NaN, 0];
      r.mean = mean;
      r.cells[MEAN].hidden = !seen;
      r.cells[MEAN].textContent = Number.isNaN(mean) ? DASH : mean.toFixed(2) + (differ ? "*" : "");
      r.cells[MEAN].title = differ ? `* ${plural(differ, "number")} of the mean: of other prompts or another copy of the data` : "";
    }
    const notes = whole ? suite.rank_notes : [];
    document.getElementById("ranks").replaceChildren(...notes.map((note) => el("li", {}, note)));
  }

  /** The best of the models that are shown, in bold, where there are two to compare. */
  function best() {
    const seen = rows.filter((r) => !r.row.hidden);
    shown.forEach((keep, i) => {
      if (!keep) return;
      const found = seen.filter((r) => !Number.isNaN(r.values[i]));
      const top = found.length > 1 ? (less[i] ? Math.min : Math.max)(...found.map((r) => r.values[i])) : NaN;
      for (const r of rows) r.cells[FIRST + i].classList.toggle("best", r.values[i] === top);
    });
  }

  // A wide table starts without its intervals: half as much to read, and to lay out when it is sorted.
  const WIDE = 20;
  const shows = document.getElementById("intervals");
  const halves = rows.flatMap((r) => r.cells.map((cell) => [cell, cell.querySelector("i")])).filter(([, half]) => half);
  function intervals() {
    for (const [cell, half] of halves) shows.checked ? cell.firstChild.after(half) : half.remove();
    for (const r of rows) r.cells[MEAN].querySelector("i")?.toggleAttribute("hidden", !shows.checked);
    shell.classList.toggle("bare", !shows.checked);
  }

  // On paper nothing scrolls: what would run over the edge goes to tables of its own. Their headings are plain text,
  // since a browser repeats no buttons on the pages that follow.
  const PER_PART = 10;
  addEventListener("beforeprint", () => {
    const kept = heads.map((head, i) => i).filter((i) => !heads[i].hidden && i !== 0);
    document.body.classList.add("in-parts");
    for (let start = 0; start < kept.length; start += PER_PART) {
      const part = shell.cloneNode(true);
      part.removeAttribute("id");
      part.classList.add("part");
      const own = new Set([0, ...kept.slice(start, start + PER_PART)]);
      for (const row of part.rows) [...row.cells].forEach((cell, i) => own.has(i) || cell.remove());
      for (const button of part.querySelectorAll("button")) button.replaceWith(button.textContent);
      shell.parentElement.append(part);
    }
  });
  addEventListener("afterprint", () => {
    document.body.classList.remove("in-parts");
    for (const part of document.querySelectorAll(".part")) part.remove();
  });

  for (const field of Object.values(fields)) field.addEventListener("input", filter);
  const form = document.getElementById("filters");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { publish(); intervals(); }));
  shows.addEventListener("change", intervals);
  asks.addEventListener("change", publish);
  shows.defaultChecked = columns.length <= WIDE;
  intervals();
  filter();
  return { sort };
})();
