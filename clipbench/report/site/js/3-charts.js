// Charts: Vega-Lite specifications. Colours are the page's own, so that they follow its theme and print well.

const COLOURS = groups.map((_, i) => `var(--c${i % 8})`);
const SHAPES = groups.map((_, i) => ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left"][i % 8]);
const LOOK = {
  background: "transparent",
  font: 'system-ui, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif',
  view: { stroke: "var(--line)" },
  axis: {
    labelColor: "var(--ink)", titleColor: "var(--ink)", tickColor: "var(--line)", domainColor: "var(--line)",
    gridColor: "var(--line)", gridOpacity: 0.6, labelFontSize: 12, titleFontSize: 12, titleFontWeight: 400, labelLimit: 260,
  },
  legend: { labelColor: "var(--ink)", titleColor: "var(--faint)", labelFontSize: 12, titleFontSize: 12, titleFontWeight: 400, labelLimit: 260 },
};

/** Draw `spec` into a new element and return that; `label` says in words what the chart shows. */
function chart(label, spec) {
  const host = el("div", { class: "chart" });
  const whole = {
    description: label, width: "container", config: LOOK, ...spec,
  };
  // The interpreter evaluates expressions without eval, which the page's policy forbids.
  const options = { actions: false, renderer: "svg", ast: true, tooltip: { theme: "page" }, mode: "vega-lite" };
  // Its width is its container's, which it has once it is shown.
  new ResizeObserver((_, observer) => {
    if (!host.clientWidth) return;
    observer.disconnect();
    vegaEmbed(host, whole, options);
  }).observe(host);
  return host;
}

/** Room around the values of a percentage axis: never a bar or an interval outside 0 to 100 that is inside in truth. */
function span(values) {
  const low = Math.min(...values), high = Math.max(...values);
  const room = Math.max((high - low) * 0.06, 1);
  return [Math.max(low - room, Math.min(0, low)), high <= 100 ? Math.min(high + room, 100.5) : high + room];
}

/** A layer of the values that `fits` holds of; none where it holds of none, which Vega would warn of. */
function only(values, fits, layer) {
  const own = values.filter(fits);
  return own.length ? [{ ...layer, data: { values: own } }] : [];
}

const KINDS = {
  domain: ["measured", "reported", "chance"],
  shape: { range: ["circle", "diamond", "stroke"] },
  colour: { range: ["var(--c0)", "var(--c1)", "var(--faint)"] },
};

/** One line a name: the score with its interval, what is reported, chance. `rows`: {name, value, low, high, reported, chance}. */
function dots(label, rows, axis) {
  const values = [];
  for (const { name, value, low, high, reported: told, chance } of rows) {
    values.push({ name, kind: "measured", value, low, high, text: `${num(value)} (${num(low)} to ${num(high)})` });
    if (told !== null && told !== undefined) values.push({ name, kind: "reported", value: told, text: asPrinted(told) });
    if (chance !== null && chance !== undefined) values.push({ name, kind: "chance", value: chance, text: num(chance) });
  }
  const kinds = KINDS.domain.filter((kind) => values.some((v) => v.kind === kind));
  const range = (of) => KINDS.domain.map((k, i) => [k, of[i]]).filter(([k]) => kinds.includes(k)).map(([, v]) => v);
  const y = { field: "name", type: "nominal", sort: rows.map((r) => r.name), title: null, axis: { grid: true, gridDash: [1, 3] } };
  const domain = span(values.flatMap((v) => [v.value, v.low ?? v.value, v.high ?? v.value]));
  const x = { field: "value", type: "quantitative", title: axis, scale: { domain, nice: false, zero: false } };
  const legend = kinds.length > 1 ? { title: null, orient: "top" } : null;
  return chart(label, {
    height: Math.max(60, 22 * rows.length), data: { values },
    layer: [
      ...only(values, (v) => v.kind === "measured", { mark: { type: "rule", strokeWidth: 2, color: "var(--c0)", aria: false },
        encoding: { y, x: { ...x, field: "low" }, x2: { field: "high" } } }),
      { mark: { type: "point", filled: false, size: 60, strokeWidth: 2, opacity: 1 },
        encoding: {
          y, x,
          fill: { condition: { test: "datum.kind === 'measured'", value: "var(--c0)" }, value: "transparent" },
          shape: { field: "kind", type: "nominal", scale: { domain: kinds, range: range(KINDS.shape.range) }, legend },
          color: { field: "kind", type: "nominal", scale: { domain: kinds, range: range(KINDS.colour.range) }, legend },
          tooltip: [{ field: "name", title: "of" }, { field: "kind" }, { field: "text", title: "per cent" }],
        } },
    ],
  });
}

/** Horizontal bars from 0: `rows` are {name, value} in per cent, in the order given. */
function bars(label, rows, axis) {
  const values = rows.map((r) => ({ ...r, text: r.value.toFixed(1) }));
  const y = { field: "name", type: "nominal", sort: rows.map((r) => r.name), title: null };
  return chart(label, {
    height: Math.max(60, 18 * rows.length), data: { values },
    encoding: { y, x: { field: "value", type: "quantitative", title: axis, scale: { domain: [0, Math.max(100, ...rows.map((r) => r.value))] } } },
    layer: [
      { mark: { type: "bar", color: "var(--c0)", height: { band: 0.7 } }, encoding: { tooltip: [{ field: "name" }, { field: "text", title: "per cent" }] } },
      { mark: { type: "text", align: "left", dx: 3, color: "var(--ink)", fontSize: 11, aria: false }, encoding: { text: { field: "text" } } },
    ],
  });
}

/** A probe's penalty against its validation score; the chosen ones are starred, those that did not converge hollow. */
function probePath(label, curves) {
  const values = curves.flatMap(({ points, chosen }, i) => points.map(([lambda, score, ok]) => ({
    draw: `draw ${i + 1}`, lambda, score, converged: ok ? "yes" : "no", chosen: chosen.includes(lambda),
    text: lambda.toPrecision(3),
  })));
  const x = { field: "lambda", type: "quantitative", scale: { type: "log", nice: false }, axis: { format: "~e", grid: true }, title: "λ = 1 / C (weak ← regularisation → strong)" };
  const y = { field: "score", type: "quantitative", scale: { zero: false }, title: "validation score, per cent" };
  const detail = { field: "draw", type: "nominal" };
  const tooltip = [{ field: "text", title: "λ" }, { field: "score", title: "per cent" }, { field: "converged" }, ...(curves.length > 1 ? [{ field: "draw" }] : [])];
  return chart(label, {
    height: 240, data: { values },
    layer: [
      { mark: { type: "line", color: "var(--c0)", strokeWidth: 1, aria: false }, encoding: { x, y, detail } },
      ...only(values, (v) => v.converged === "yes", { mark: { type: "point", filled: true, size: 22, color: "var(--c0)" }, encoding: { x, y, tooltip } }),
      ...only(values, (v) => v.converged === "no", { mark: { type: "point", filled: false, size: 22, color: "var(--c0)" }, encoding: { x, y, tooltip } }),
      ...only(values, (v) => v.chosen, { mark: { type: "point", filled: true, shape: "M0,-1L.23,-.31L.95,-.31L.37,.12L.59,.81L0,.38L-.59,.81L-.37,.12L-.95,-.31L-.23,-.31Z", size: 260, opacity: 1, color: "var(--c1)" }, encoding: { x, y, tooltip } }),
    ],
  });
}

/** Accuracy against training pairs. `points`: {model, group, pairs, value, low, high, source}, no interval where reported. */
function scatter(label, points, metric) {
  const values = points.map((p) => ({
    ...p, pairs_m: p.pairs * 1e6, kind: p.low === undefined ? "reported" : "measured",
    many: pairsText(p.pairs),
    text: p.low === undefined ? asPrinted(p.value) : `${num(p.value)} (${num(p.low)} to ${num(p.high)})`,
  }));
  const own = groups.filter((g) => values.some((v) => v.group === g));
  const of = (range) => own.map((g) => range[groups.indexOf(g)]);
  const x = { field: "pairs_m", type: "quantitative", scale: { type: "log", nice: false, padding: 24 }, title: "training pairs (log scale)", axis: { format: "~s", labelExpr: "replace(datum.label, 'G', 'B')", grid: true, tickCount: 6 } };
  const y = { field: "value", type: "quantitative", scale: { zero: false, padding: 16 }, title: `${metric}, per cent` };
  const color = { field: "group", type: "nominal", title: "family", scale: { domain: own, range: of(COLOURS) }, legend: { orient: "top", symbolFillColor: "transparent" } };
  const shape = { ...color, scale: { domain: own, range: of(SHAPES) } };
  const tooltip = [{ field: "model" }, { field: "group", title: "family" }, { field: "many", title: "pairs" }, { field: "text", title: "per cent" }, { field: "kind" }, { field: "source" }];
  const measured = (v) => v.kind === "measured";
  const point = { type: "point", size: 80, strokeWidth: 1.8, opacity: 1 };
  return chart(label, {
    height: 340, data: { values },
    layer: [
      ...only(values, measured, { mark: { type: "rule", strokeWidth: 1.5, aria: false }, encoding: { x, y: { ...y, field: "low" }, y2: { field: "high" }, color } }),
      ...only(values, (v) => !measured(v), { mark: { ...point, filled: false }, encoding: { x, y, color, shape, tooltip } }),
      ...only(values, measured, { mark: { ...point, filled: true }, encoding: { x, y, color, shape, tooltip } }),
    ],
  });
}
