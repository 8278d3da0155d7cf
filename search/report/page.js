/* The page's own script: draws from the JSON document in #data, follows /data.json where the page is live. */
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const MOST = 2500; // markers at once: more cannot be told from each other, and would stutter
  const CONFIG = { displaylogo: false, responsive: true, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };
  const SMALL = { displayModeBar: false, responsive: true };
  const AXIS = { zeroline: false, gridcolor: "#C8CED6", automargin: true };
  const GREY = "#7C8591";
  let data = JSON.parse($("data").textContent);
  let chosen = -1;
  let drawn = { x: [], y: [] };

  const escape = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  const count = (value) => {
    for (const [size, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
      if (Math.abs(value) >= 0.9995 * size) return `${+(value / size).toPrecision(3)}${letter}`;
    return `${+value.toPrecision(3)}`;
  };
  const wilson = (right, n) => {
    const z = 1.959964, p = right / n, middle = (p + (z * z) / (2 * n)) / (1 + (z * z) / n);
    const half = (z / (1 + (z * z) / n)) * Math.sqrt((p * (1 - p)) / n + (z * z) / (4 * n * n));
    return [right ? middle - half : 0, right < n ? middle + half : 1];
  };
  const size = (i) => (Array.isArray(data.cloud.n) ? data.cloud.n[i] : data.cloud.n);
  const interval = (i) => (data.cloud.c[i] === null || !size(i) ? null : wilson(data.cloud.c[i], size(i)));
  const trialOf = (i) => data.trials[data.cloud.t[i]];
  const idOf = (i) => `${trialOf(i).id}-${data.cloud.e[i]}-${data.cloud.i[i]}`;
  const named = (t) => [t.method, t.variant].filter(Boolean).join(" ");

  /* Accuracies and MACs of a study with axes of its own stand for other figures: these are shown. */
  const figure = (value) => (Math.abs(value) >= 1e5 ? count(value) : `${+value.toPrecision(4)}`);
  const along = (axis, place) => (axis.log ? axis.best * (axis.worst / axis.best) ** place : axis.best + place * (axis.worst - axis.best));
  const meritOf = (accuracy) => along(data.axes.merit, 1 - accuracy);
  const costOf = (macs) => (!data.axes.cost.log ? along(data.axes.cost, Math.log10(macs) / 2) : data.axes.cost.maximise ? 1 / macs : macs);
  const meritText = (accuracy) => (data.axes ? figure(meritOf(accuracy)) : percent(accuracy));
  const costText = (macs) => (data.axes ? figure(costOf(macs)) : count(macs));
  const unit = () => (data.axes ? data.axes.cost.unit || data.axes.cost.name : "MACs");
  const titles = () => (data.axes ? [`${data.axes.titles[1]}${data.axes.cost.log ? " (log scale)" : ""}`, data.axes.titles[0]] : ["MACs per image (log scale)", "validation accuracy"]);
  const accuracyText = (i) => {
    const bounds = interval(i), name = data.axes ? `${data.axes.merit.name} ` : "";
    const between = bounds && (data.axes ? bounds.map(meritOf).sort((p, q) => p - q).map((v) => `${+v.toPrecision(3)}`) : bounds.map((b) => (100 * b).toFixed(1)));
    return name + meritText(data.cloud.a[i]) + (between ? ` (${between[0]} to ${between[1]})` : "");
  };
  const shortConfig = (config) =>
    Object.entries(config)
      .filter(([name]) => !["method", "variant", "network"].includes(name))
      .slice(0, 6)
      .map(([name, value]) => `${name} ${typeof value === "number" ? +value.toPrecision(3) : value}`)
      .join(", ");
  const hover = (i, others) => {
    const t = trialOf(i);
    return (
      `<b>${escape(accuracyText(i))}</b> at <b>${costText(data.cloud.m[i])} ${escape(unit())}</b><br>` +
      `${escape(named(t))}, ${escape(t.network)}, trial ${escape(t.id)}, epoch ${data.cloud.e[i]}<br>` +
      `${escape(data.knobs[data.cloud.k[i]])}<br>${escape(shortConfig(t.config))}` +
      (others > 1 ? `<br><i>the best of ${others} points here; zoom in to tell them apart</i>` : "")
    );
  };

  /* Points of the window, those of one cell as one marker at the best of them; cells grow until few enough are left. */
  function markers(range) {
    const [[left, right], [bottom, top]] = range, { a, m } = data.cloud;
    const wide = Math.max($("frontier").clientWidth - 60, 200), high = 430;
    const inside = [];
    for (let i = 0; i < a.length; i++) {
      const x = Math.log10(m[i]);
      if (x >= left && x <= right && a[i] >= bottom && a[i] <= top) inside.push(i);
    }
    for (let pixels = inside.length > MOST ? 3 : 0; ; pixels = pixels * 1.5 || 3) {
      const cells = new Map();
      for (const i of inside) {
        const column = pixels ? Math.floor(((Math.log10(m[i]) - left) / (right - left)) * (wide / pixels)) : i;
        const row = pixels ? Math.floor(((a[i] - bottom) / (top - bottom)) * (high / pixels)) : 0;
        const key = `${trialOf(i).method}|${column}|${row}`;
        const cell = cells.get(key);
        if (!cell) cells.set(key, [i, 1]);
        else {
          cell[1]++;
          if (a[i] > a[cell[0]] || (a[i] === a[cell[0]] && m[i] < m[cell[0]])) cell[0] = i;
        }
      }
      if (cells.size <= MOST) return { cells: [...cells.values()], inside: inside.length };
    }
  }

  function traces(range) {
    const { a, m } = data.cloud, found = [];
    const { cells, inside } = markers(range);
    const leading = new Set(data.front.map((i) => trialOf(i).method));
    for (const method of Object.keys(data.styles)) {
      const mine = cells.filter(([i]) => trialOf(i).method === method);
      if (!mine.length) continue;
      found.push({
        x: mine.map(([i]) => m[i]), y: mine.map(([i]) => a[i]), text: mine.map(([i, n]) => hover(i, n)),
        customdata: mine.map(([i]) => i), mode: "markers", type: "scatter", name: escape(method), legendgroup: escape(method),
        hovertemplate: "%{text}<extra></extra>", showlegend: !leading.has(method), legendrank: 2000,
        marker: { color: data.styles[method][0], size: mine.map(([, n]) => 5 + Math.min(4, Math.log2(n) / 2)), opacity: 0.45, line: { width: 0 } },
      });
    }
    if (data.papers.length)
      found.push({
        x: data.papers.map((p) => p.m), y: data.papers.map((p) => p.a), mode: "markers", type: "scatter",
        name: "papers (test split)", marker: { color: "rgba(0,0,0,0)", size: 9, symbol: "circle-open", line: { width: 1.5, color: GREY } },
        text: data.papers.map((p) => `<b>${percent(p.a)}</b> at <b>${count(p.m)} MACs</b><br>${escape(p.name)}<br>${escape(p.cited)}: ${escape(p.cost)}<br>their test split; not measured here`),
        hovertemplate: "%{text}<extra></extra>",
      });
    const f = data.front;
    if (f.length) {
      const end = 10 ** Math.max(data.window[0][1], range[0][1]);
      found.push({
        x: [...f.map((i) => m[i]), end], y: [...f.map((i) => a[i]), a[f[f.length - 1]]], mode: "lines", type: "scatter",
        name: "frontier", hoverinfo: "skip", line: { color: GREY, width: 2.5, shape: "hv" },
      });
    }
    for (const method of leading) {
      const mine = f.filter((i) => trialOf(i).method === method), [color, symbol] = data.styles[method];
      const bounds = mine.map((i) => interval(i) || [a[i], a[i]]);
      found.push({
        x: mine.map((i) => m[i]), y: mine.map((i) => a[i]), text: mine.map((i) => hover(i, 1) + sureText(i)), customdata: mine,
        mode: "markers", type: "scatter", name: escape(method), legendgroup: escape(method), hovertemplate: "%{text}<extra></extra>",
        error_y: { type: "data", symmetric: false, thickness: 1, width: 0, color,
          array: mine.map((i, n) => bounds[n][1] - a[i]), arrayminus: mine.map((i, n) => a[i] - bounds[n][0]) },
        marker: { color, symbol, size: 11, line: { color: "#FFFFFF", width: 1 } },
      });
    }
    $("drawn").textContent = cells.length === inside
      ? `${inside.toLocaleString("en")} of ${data.total.toLocaleString("en")} operating points are in view, each one drawn.`
      : `${inside.toLocaleString("en")} of ${data.total.toLocaleString("en")} operating points are in view, drawn as ${cells.length.toLocaleString("en")} dots.`;
    return found;
  }
  const sureText = (i) => {
    const sure = data.sure[data.front.indexOf(i)];
    if (!sure || sure.membership === null || sure.membership === undefined) return "";
    return `<br>on the front in ${percent(sure.membership)} of ${sure.evidence === "images" ? "redrawn image sets" : "redrawn counts"}`;
  };

  let range = data.window;
  const ticks = () => {
    const [left, right] = range[0];
    if (range === data.window) return { tickvals: data.ticks[0], ticktext: data.ticks[1] };
    const values = [];
    for (let d = Math.floor(left); d <= right; d++)
      for (const s of [1, 1.5, 2, 3, 4, 5, 7]) if (d + Math.log10(s) >= left && d + Math.log10(s) <= right) values.push(s * 10 ** d);
    if (values.length < 3) for (let s = 0; s < 5; s++) values.push(10 ** (left + ((right - left) * (s + 0.5)) / 5));
    const step = Math.ceil(values.length / 7);
    const kept = values.sort((p, q) => p - q).filter((_, n) => n % step === 0);
    return { tickvals: kept, ticktext: kept.map(costText) };
  };
  const merits = () => {
    if (!data.axes) return { tickformat: ".3~p" };
    const [low, high] = range[1];
    if (range === data.window) return { tickvals: data.axes.merits[0], ticktext: data.axes.merits[1] };
    const values = [0, 1, 2, 3, 4, 5].map((n) => low + ((high - low) * (n + 0.5)) / 6);
    return { tickvals: values, ticktext: values.map(meritText) };
  };
  /* The frame around the chosen point is an annotation: to move it draws nothing else again. */
  const frame = () => (chosen < 0 ? [] : [{ x: Math.log10(data.cloud.m[chosen]), y: data.cloud.a[chosen], text: " ", showarrow: false,
    width: 18, height: 18, borderpad: 0, bordercolor: "#E0218A", borderwidth: 3 }]);
  const layout = () => ({
    height: 540, annotations: frame(), margin: { l: 8, r: 12, t: 40, b: 8 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 13 }, hovermode: "closest", dragmode: narrow() ? false : "zoom",
    hoverlabel: { bgcolor: "#1F242B", font: { color: "#FFFFFF" }, align: "left" },
    legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: GREY, activecolor: GREY },
    xaxis: { ...AXIS, title: { text: escape(titles()[0]) }, type: "log", range: [...range[0]], ...ticks() },
    yaxis: { ...AXIS, title: { text: escape(titles()[1]) }, range: [...range[1]], ...merits() },
  });
  const narrow = () => window.matchMedia("(max-width: 600px)").matches;
  let busy = false, times = 0;
  async function drawFrontier() {
    busy = true;
    await Plotly.react("frontier", traces(range), layout(), CONFIG);
    busy = false;
    $("frontier").dataset.drawn = ++times;
  }
  function listen() {
    const figure = $("frontier");
    figure.on("plotly_click", (event) => {
      const i = event.points[0] && event.points[0].customdata;
      if (Number.isInteger(i)) select(i);
    });
    figure.on("plotly_relayout", (event) => {
      if (busy) return;
      if (event["xaxis.autorange"] || event["yaxis.autorange"]) range = data.window;
      else if (event["xaxis.range[0]"] !== undefined || event["yaxis.range[0]"] !== undefined) {
        const x = event["xaxis.range[0]"] === undefined ? range[0] : [event["xaxis.range[0]"], event["xaxis.range[1]"]];
        const y = event["yaxis.range[0]"] === undefined ? range[1] : [event["yaxis.range[0]"], event["yaxis.range[1]"]];
        const same = [x, y].flat().every((v, n) => Math.abs(v - data.window.flat()[n]) < 1e-9);
        range = same ? data.window : [x, y];
      } else return;
      drawFrontier();
    });
    $("frontier-box").addEventListener("keydown", (event) => {
      const at = data.front.indexOf(chosen), last = data.front.length - 1;
      const to = { ArrowRight: at + 1, ArrowUp: at + 1, ArrowLeft: at < 0 ? last : at - 1, ArrowDown: at < 0 ? last : at - 1, Home: 0, End: last }[event.key];
      if (to === undefined || last < 0) return;
      event.preventDefault();
      select(data.front[Math.min(Math.max(to, 0), last)]);
    });
    document.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-point]");
      if (button) {
        if (selectById(button.dataset.point)) $("chosen").scrollIntoView({ block: "nearest" });
      } else if (event.target.closest("button[data-copy]")) navigator.clipboard && navigator.clipboard.writeText($("command").textContent);
    });
  }

  /* The point one looks at: its facts, its trial's curves by epoch, the command that promotes it. */
  function select(i) {
    chosen = i;
    show(i);
    history.replaceState(null, "", `#${encodeURIComponent(idOf(i))}`);
    Plotly.relayout("frontier", { annotations: frame() }).then(() => ($("frontier").dataset.drawn = ++times));
  }
  function show(i) {
    const t = trialOf(i), at = data.front.indexOf(i), sure = data.sure[at];
    const facts = [
      [data.axes ? data.axes.titles[0] : "accuracy, 95 % interval", accuracyText(i)],
      [data.axes ? data.axes.titles[1] : "MACs per image", costText(data.cloud.m[i])], ["method", named(t)], ...(t.network ? [["network", t.network]] : []),
      ["knobs", data.knobs[data.cloud.k[i]]], ["epoch", data.cloud.e[i]], ["trial", `${t.id}${t.state ? `, ${t.state}` : ""}`],
      ["frontier", at < 0 ? "not on it" : `point ${at + 1} of ${data.front.length}`],
    ];
    if (sure && sure.membership !== null && sure.membership !== undefined)
      facts.push(["probability to be on it", `${percent(sure.membership)}, from ${sure.evidence}, ${sure.seeds} ${sure.seeds === 1 ? "seed" : "seeds"}`]);
    $("chosen-title").textContent = `Point ${idOf(i)}`;
    $("chosen-facts").replaceChildren(...facts.map(([name, value]) => {
      const box = document.createElement("div"), dt = document.createElement("dt"), dd = document.createElement("dd");
      dt.textContent = name; dd.textContent = value; box.append(dt, dd);
      return box;
    }));
    $("chosen-why").textContent = t.reason ? `Its trial ended: ${t.reason}` : "";
    $("chosen-config").textContent = JSON.stringify(t.config, null, 2);
    const kept = t.kept.includes(data.cloud.e[i]);
    $("command").textContent = kept ? `${data.promote} --point ${quote(idOf(i))} --model NAME` : "";
    $("command-box").hidden = !kept || !!data.axes;
    $("command-none").hidden = kept || !!data.axes;
    $("chosen").hidden = false;
    drawTrial(i);
  }
  const quote = (text) => (/^[\w.-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
  function selectById(id) {
    for (let i = 0; i < data.cloud.t.length; i++) if (idOf(i) === id) return select(i), true;
    return false;
  }
  /* Five ticks over some accuracies, with the figures for which they stand. */
  const levels = (accuracies) => {
    const low = Math.min(...accuracies), high = Math.max(...accuracies);
    const values = high > low ? [0, 1, 2, 3, 4].map((n) => low + ((high - low) * n) / 4) : [low];
    return { tickvals: values, ticktext: values.map(meritText) };
  };
  function drawTrial(i) {
    const t = data.cloud.t[i], epochs = new Map();
    data.cloud.t.forEach((other, k) => {
      if (other === t) epochs.set(data.cloud.e[k], [...(epochs.get(data.cloud.e[k]) || []), k]);
    });
    const order = [...epochs.keys()].sort((p, q) => p - q), { a, m } = data.cloud;
    const found = order.map((epoch, n) => {
      const mine = epochs.get(epoch).sort((p, q) => m[p] - m[q]), late = order.length > 1 ? n / (order.length - 1) : 1;
      const color = `hsl(${Math.round(40 + 165 * late)} 75% ${Math.round(48 - 6 * late)}%)`;
      return { x: mine.map((k) => m[k]), y: mine.map((k) => a[k]), text: mine.map((k) => hover(k, 1)), mode: "lines+markers", type: "scatter",
        name: `epoch ${epoch}`, hovertemplate: "%{text}<extra></extra>", line: { color, width: epoch === data.cloud.e[i] ? 3 : 1.5 }, marker: { color, size: 6 } };
    });
    found.push({ x: [m[i]], y: [a[i]], mode: "markers", type: "scatter", hoverinfo: "skip", showlegend: false,
      marker: { symbol: "circle-open", size: 18, color: "#E0218A", line: { width: 3, color: "#E0218A" } } });
    const all = [...epochs.values()].flat().map((k) => m[k]);
    const low = Math.min(...all), high = Math.max(...all), near = high / low < 1.05;
    const values = near ? [low] : [0, 1, 2, 3].map((n) => low * (high / low) ** (n / 3));
    const base = layout();
    Plotly.react("trial", found, { ...base, height: 360, dragmode: false, annotations: [], legend: { ...base.legend, title: { text: "" } },
      margin: { l: 8, r: 12, t: 12, b: 8 },
      xaxis: { ...AXIS, title: { text: escape(titles()[0]) }, type: "log", tickvals: values, ticktext: values.map(costText),
        ...(near ? { range: [Math.log10(low / 1.3), Math.log10(low * 1.3)] } : {}) },
      yaxis: { ...AXIS, title: { text: escape(titles()[1]) }, ...(data.axes ? levels(all.map((_, n) => a[[...epochs.values()].flat()[n]])) : { tickformat: ".3~p" }) } }, SMALL);
  }

  /* Figures are drawn when they come near the window: the page is there at once. */
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries)
      if (entry.isIntersecting) {
        seen.unobserve(entry.target);
        drawFigure(entry.target.id);
      }
  }, { rootMargin: "600px" });
  const done = new Set();
  function drawFigure(id) {
    const figure = data.figures[id];
    done.add(id);
    if (figure && $(id)) Plotly.react(id, figure.data, { ...figure.layout, dragmode: false }, SMALL);
  }

  async function start() {
    await drawFrontier();
    listen();
    for (const box of document.querySelectorAll("[data-figure]")) seen.observe(box);
    const wanted = decodeURIComponent(location.hash.slice(1));
    if (wanted) selectById(wanted);
    document.documentElement.dataset.ready = "yes";
    if (document.body.dataset.live) follow();
  }
  window.addEventListener("beforeprint", () => document.querySelectorAll("[data-figure]").forEach((box) => drawFigure(box.id)));

  /* Live: ask for what is new; the answer is the same document and the same sections, rendered again. */
  async function follow() {
    const every = Number(document.body.dataset.live) * 1000;
    let tag = document.body.dataset.tag;
    for (;;) {
      await new Promise((resolve) => setTimeout(resolve, every));
      try {
        const answer = await fetch("/data.json", { headers: tag ? { "If-None-Match": tag } : {} });
        if (answer.status === 200) {
          tag = answer.headers.get("ETag");
          take(await answer.json());
        }
        $("live").textContent = `live, as of ${new Date().toLocaleTimeString()}`;
      } catch {
        $("live").textContent = `not connected since ${new Date().toLocaleTimeString()}; is routefront watch still running?`;
      }
    }
  }
  function take(fresh) {
    const before = chosen >= 0 ? idOf(chosen) : null, whole = range === data.window;
    data = fresh.document;
    if (whole) range = data.window;
    for (const [id, html] of Object.entries(fresh.sections)) if ($(id)) $(id).innerHTML = html; // ours, escaped by the server
    chosen = -1;
    if (before) for (let i = 0; i < data.cloud.t.length && chosen < 0; i++) if (idOf(i) === before) chosen = i;
    if (chosen >= 0) show(chosen);
    drawFrontier();
    for (const box of document.querySelectorAll("[data-figure]")) done.has(box.id) ? drawFigure(box.id) : seen.observe(box);
  }
  start();
})();
