"use strict";
(async () => {
  const { charts, looks, unit = "steps" } = JSON.parse(document.getElementById("charts").textContent);
  const hidden = new Set(JSON.parse(recall("hidden") ?? "[]"));
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const zoom = document.getElementById("zoom");
  const metric = document.getElementById("metric");
  const plots = [...document.querySelectorAll(".plot")];

  // Shown state outlives the page's refreshing of itself; some browsers keep nothing for files.
  function recall(name) { try { return sessionStorage.getItem(name); } catch { return null; } }
  function keep(name, value) { try { sessionStorage.setItem(name, value); } catch {} }

  // Open where lines are dashed.
  const symbol = (dash) => (dash === "solid" ? "circle" : "circle-open");
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const plain = (text) => text.replace(/[<&]/g, (c) => (c === "<" ? "&lt;" : "&amp;"));
  const say = (value) => Math.abs(value) >= 1e4 || (value && Math.abs(value) < 1e-3)
    ? value.toPrecision(3) : String(Number(value.toPrecision(4)));

  for (const swatch of document.querySelectorAll(".swatch")) {
    const [color, dash] = looks[Number(swatch.dataset.style)];
    swatch.style.borderTopColor = color;
    swatch.style.borderTopStyle = { solid: "solid", dash: "dashed" }[dash] ?? "dotted";
  }

  function hover(chart, series, i) {
    const seeds = series.seeds[i] === 1 ? "1 seed" : `${series.seeds[i]} seeds`;
    const interval = series.low[i] === null ? "no interval"
      : `95 % [${say(series.low[i])}, ${say(series.high[i])}]`;
    if (series.names.length) {
      return `<b>${plain(series.names[i])}</b><br>${say(series.y[i])}<br>${interval}, ${seeds}`;
    }
    let where = chart.rows[Math.round(series.x[i])];
    if (chart.kind === "lines") {
      const x = series.x[i];
      where = { steps: `${x.toLocaleString("en")} ${plain(unit)}`, share: `${Math.round(100 * x)} % of training`,
        score: `above ${say(x)}` }[chart.along];
    }
    const label = plain(series.label);
    return `<b>${label}</b><br>${where}: ${say(series.y[i])}<br>${interval}, ${seeds}`;
  }

  function traces(chart) {
    const positive = chart.series.flatMap((s) => s.y).filter((y) => y > 0);
    const floor = chart.log ? Math.min(...positive) : -Infinity; // of bands that reach down to 0
    if (chart.kind === "grid") return [cells(chart)];
    const drawn = chart.series.flatMap((series) => {
      const [color, dash] = series.look;
      const points = series.y.map((_, i) => i).filter((i) => series.y[i] !== null);
      const banded = points.filter((i) => series.low[i] !== null);
      const pick = (values, at = points) => at.map((i) => values[i]);
      const common = {
        type: "scatter", name: series.label, meta: series.style,
        visible: !hidden.has(series.style),
      };
      const hovering = {
        text: points.map((i) => hover(chart, series, i)), hovertemplate: "%{text}<extra></extra>",
      };
      const bar = (i, end) => (series.low[i] === null ? 0 : Math.abs(series[end][i] - series.y[i]));
      if (chart.kind === "draws") {
        return [{
          ...common, ...hovering, showlegend: series.label !== "", x: pick(series.x), y: pick(series.y),
          mode: series.joined ? "lines+markers" : "markers", line: { color, width: 1.5 },
          marker: { color, size: 7, symbol: series.joined ? "circle" : "diamond" },
          error_y: {
            type: "data", symmetric: false, array: points.map((i) => bar(i, "high")),
            arrayminus: points.map((i) => bar(i, "low")), color, thickness: 1.2, width: 0,
          },
        }];
      }
      if (chart.kind === "intervals") {
        return [{
          ...common, ...hovering, mode: "markers", x: pick(series.y), y: pick(series.x),
          marker: { color, size: 8, symbol: symbol(dash) },
          error_x: {
            type: "data", symmetric: false, array: points.map((i) => bar(i, "high")),
            arrayminus: points.map((i) => bar(i, "low")), color,
            thickness: 2, width: 0,
          },
        }];
      }
      const back = [...banded].reverse();
      const band = {
        ...common, mode: "lines", hoverinfo: "skip", fill: "toself", line: { width: 0 },
        fillcolor: color + (chart.series.length > 8 ? "12" : "30"),
        x: [...pick(series.x, banded), ...pick(series.x, back)],
        y: [...pick(series.high, banded), ...pick(series.low, back)].map((y) => Math.max(y, floor)),
      };
      const line = {
        ...common, ...hovering, x: pick(series.x), y: pick(series.y),
        mode: chart.markers && points.length <= 20 ? "lines+markers" : "lines",
        line: { color, width: 2, dash },
        marker: { size: 5 },
      };
      return banded.length ? [band, line] : [line];
    });
    return drawn.sort((a, b) => Boolean(b.fill) - Boolean(a.fill)); // no band dims a line
  }

  // A heat map, of the agent's colour; each cell has its score written on it.
  function cells(chart) {
    const at = (part) => chart.series.map((series) => part(series));
    const scores = at((series) => series.y);
    const [color] = chart.series[0].look;
    return {
      type: "heatmap", x: chart.columns, y: chart.rows, z: scores, xgap: 2, ygap: 2,
      colorscale: [[0, css("--soft")], [1, color]], hoverongaps: false,
      colorbar: { thickness: 10, outlinewidth: 0, nticks: 6 },
      text: at((series) => series.y.map((y) => (y === null ? "" : say(y)))), texttemplate: "%{text}",
      customdata: at((series) => series.y.map((y, i) => (y === null ? "" : hover(chart, series, i)))),
      hovertemplate: "%{customdata}<extra></extra>",
    };
  }

  // Where the ticks of a setting are: at its values, if these are few; else at powers of 10.
  function settingTicks(chart) {
    if (chart.ticks.length) return { tickvals: chart.ticks, ticktext: chart.ticks.map(String) };
    const narrow = matchMedia("(max-width: 40rem)").matches;
    return chart.log_x ? { dtick: narrow ? 1 : "D2", tickformat: "~r" } : {};
  }

  function layout(chart) {
    const axis = {
      gridcolor: css("--line"), linecolor: css("--line"), zeroline: false, automargin: true,
      fixedrange: !zoom.checked, ticks: "",
    };
    const sideways = chart.kind === "intervals";
    const isGrid = chart.kind === "grid";
    return {
      uirevision: chart.key, // what was zoomed stays so
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: chart.kind === "draws" && chart.series.some((series) => series.label),
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 11 } },
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: css("--muted") },
      margin: { l: 50, r: 22, t: 10, b: 44 }, // a last label is hidden where its half does not fit
      hovermode: "closest", hoverdistance: 30, dragmode: zoom.checked ? "zoom" : false,
      hoverlabel: {
        align: "left", bgcolor: css("--card"), bordercolor: css("--muted"),
        font: { color: css("--ink"), size: 12 },
      },
      modebar: {
        bgcolor: "rgba(0,0,0,0)", color: css("--muted"), activecolor: css("--accent"),
      },
      xaxis: {
        ...axis, title: { text: chart.x_label, standoff: 8 }, nticks: 7,
        tickformat: sideways ? "" : { steps: "~s", share: ".0%" }[chart.along] ?? "",
        type: isGrid ? "category" : chart.log_x ? "log" : "linear",
        exponentformat: "power", showgrid: !isGrid, ...(chart.kind === "draws" && settingTicks(chart)),
      },
      yaxis: sideways ? {
        ...axis, range: [chart.rows.length - 0.5, -0.5], tickvals: chart.rows.map((_, i) => i),
        ticktext: chart.rows, showgrid: false, fixedrange: true,
      } : isGrid ? {
        ...axis, title: { text: chart.y_label, standoff: 8 }, type: "category", autorange: "reversed",
        showgrid: false,
      } : {
        ...axis, title: { text: chart.y_label, standoff: 8 }, type: chart.log ? "log" : "linear",
        exponentformat: "power", nticks: 7,
      },
      shapes: chart.guide === null ? [] : [{
        type: "line", x0: chart.guide, x1: chart.guide, yref: "paper", y0: 0, y1: 1,
        line: { color: css("--muted"), width: 1, dash: "dot" },
      }],
    };
  }

  function key(plot) {
    return plot.dataset.chart ?? JSON.parse(plot.dataset.charts)[metric.value];
  }

  function draw(plot) {
    const chart = charts[key(plot)];
    plot.dataset.drawn = key(plot) ?? "";
    if (!chart) {
      Plotly.purge(plot);
      plot.textContent = "Nothing was logged.";
      return;
    }
    Plotly.react(plot, traces(chart), layout(chart), {
      responsive: true, displaylogo: false, displayModeBar: true, // page.css shows it on hovering
      // Named one by one: plotly's own choice has a button that uploads the chart.
      modeBarButtons: [["toImage"], ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
      toImageButtonOptions: { filename: chart.key, scale: 2 },
    });
  }
  const redraw = () => plots.filter((plot) => "drawn" in plot.dataset).forEach(draw);

  for (const button of document.querySelectorAll(".legend button")) {
    const style = Number(button.dataset.style);
    button.setAttribute("aria-pressed", String(!hidden.has(style)));
    button.addEventListener("click", () => {
      const shown = hidden.delete(style);
      if (!shown) hidden.add(style);
      button.setAttribute("aria-pressed", String(shown));
      keep("hidden", JSON.stringify([...hidden]));
      redraw();
    });
  }
  // A finger that drags wants to scroll the page.
  zoom.checked = (recall("zoom") ?? String(!matchMedia("(pointer: coarse)").matches)) === "true";
  zoom.addEventListener("change", () => { keep("zoom", String(zoom.checked)); redraw(); });
  const chosen = recall("metric");
  if ([...metric.options].some((option) => option.value === chosen)) metric.value = chosen;
  metric.addEventListener("change", () => { keep("metric", metric.value); redraw(); });
  document.getElementById("reset").addEventListener("click", () => {
    for (const plot of plots.filter((plot) => plot.dataset.drawn)) {
      const both = charts[plot.dataset.drawn].kind !== "intervals";
      Plotly.relayout(plot, { "xaxis.autorange": true, ...(both && { "yaxis.autorange": true }) });
    }
  });
  dark.addEventListener("change", redraw);

  const folds = [...document.querySelectorAll("details")];
  const opened = JSON.parse(recall("opened") ?? "null");
  folds.forEach((fold, i) => {
    if (opened) fold.open = opened.includes(i);
    fold.addEventListener("toggle", () => {
      keep("opened", JSON.stringify(folds.flatMap((one, j) => (one.open ? [j] : []))));
    });
  });

  const packed = atob(document.getElementById("plotly").textContent);
  const bytes = Uint8Array.from(packed, (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);

  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((entry) => entry.isIntersecting)) {
      observer.unobserve(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "400px" });
  plots.forEach((plot) => observer.observe(plot));
  addEventListener("beforeprint", () => {
    plots.filter((plot) => !plot.closest("details:not([open])")).forEach(draw);
  });
})().catch((error) => {
  for (const plot of document.querySelectorAll(".plot")) {
    plot.textContent = "This browser cannot draw the charts; they lie beside this page in figures/.";
  }
  throw error;
});
