  // Texts, never as markup: a tip beside the node under the pointer, and the edges of a selected node.
  function make(tag, text, className = "") {
    const made = document.createElement(tag);
    made.textContent = text;
    made.className = className;
    return made;
  }
  function countOf(node) {
    const edges = visibleEdges(node), harmful = edges.filter(signOf).length;
    return `${edges.length - harmful} helpful, ${harmful} harmful`;
  }
  function placeOf(node) {
    const [names, number] = isQuery(node) ? [data.slices, slices[node]] : [data.subsets, subsets[node - numQueries]];
    return names.length > 1 ? `, ${names[number].name}` : "";
  }
  function answerOf({label, prediction, probability, loss, verdict, anchors}) {
    return [
      anchors && `the mean of ${anchors} anchors, the first of which is`,
      label && `label ${label}`,
      prediction && `predicted ${prediction}${probability ? ` (${probability})` : ""}`,
      loss && `loss ${loss}`,
      verdict,
    ].filter(Boolean).join(", ");
  }
  function edgeBetween(one, other) {
    return one === null || other === null ? undefined : edgesOf[one].find(edge => edgeOn(edge) && otherEnd(edge, one) === other);
  }
  function describe(node) {
    const record = recordOf(node), edge = fixed === node ? undefined : edgeBetween(node, fixed);
    const told = edge === undefined ? countOf(node) : `${data.noun} ${scoreOf(edge)}, ${signOf(edge) ? "harmful" : "helpful"}`;
    const lines = [make("b", nameOf(node) + placeOf(node)), make("span", told, edge === undefined ? "" : ["helpful", "harmful"][signOf(edge)])];
    const answer = answerOf(record);
    if (answer) lines.push(make("span", answer));
    for (const [, text] of record.texts) lines.push(make("q", text.length > 180 ? `${text.slice(0, 180)}…` : text));
    return lines;
  }
  function showTip() {
    tip.hidden = hot === null;
    if (hot === null) return;
    tip.replaceChildren(...describe(hot));
    const room = board.parentElement.clientWidth - tip.offsetWidth; // away from the centre, where the edges are
    const left = x(hot) > size / 2 ? x(hot) + 14 : x(hot) - 14 - tip.offsetWidth;
    tip.style.left = `${Math.max(0, Math.min(room, left))}px`;
    tip.style.top = `${y(hot) > size / 2 ? y(hot) + 14 : y(hot) - 14 - tip.offsetHeight}px`;
  }
  function showChosen() {
    chosen.hidden = fixed === null;
    if (fixed === null) return chosen.replaceChildren();
    const record = recordOf(fixed), heading = make("h3", nameOf(fixed) + placeOf(fixed)), texts = make("dl", "", "texts");
    for (const [name, text] of record.texts) texts.append(make("dt", name), make("dd", text));
    const parts = [heading, texts, make("p", answerOf(record), "answer-line")];
    if (record.tags.length) parts.push(make("p", record.tags.map(([name, value]) => `${name}: ${value}`).join(" · "), "answer-line"));
    const links = make("p", "", "links");
    if (isQuery(fixed)) links.append(makeButton("show it among the queries", () => openQuery(record.index)));
    links.append(makeButton("clear selection", () => fix(null)));
    chosen.replaceChildren(...parts, links, make("h4", `Edges: ${countOf(fixed)}`), ...listEdges(fixed));
    chosen.scrollTop = 0;
  }
  function listEdges(node) {
    const edges = visibleEdges(node), list = make("ol", "", "edges-list"), more = makeButton("", addSome);
    let next = 0;
    function addSome() {
      const first = next;
      for (const end = Math.min(edges.length, next + 20); next < end; next++) list.append(edgeItem(edges[next], node));
      more.textContent = `${Math.min(20, edges.length - next)} more of ${edges.length}`;
      more.hidden = next === edges.length;
      if (first) list.children[first].firstChild.focus();
    }
    addSome();
    return [list, more];
  }
  function edgeItem(edge, node) {
    const other = otherEnd(edge, node), record = recordOf(other), item = document.createElement("li");
    const go = makeButton("", () => fix(other, true), `edge ${signOf(edge) ? "harmful" : "helpful"}`);
    const text = record.texts.map(([, words]) => words).join(" | ");
    go.append(make("b", scoreOf(edge), "influence"), make("span", nameOf(other), "index-of"));
    if (record.label) go.append(make("span", `label ${record.label}`, "index-of"));
    if (text) go.append(make("span", text.length > 140 ? `${text.slice(0, 140)}…` : text, "words"));
    for (const kind of ["pointerenter", "focus"]) go.addEventListener(kind, () => look(other, false));
    for (const kind of ["pointerleave", "blur"]) go.addEventListener(kind, () => look(null));
    item.append(go);
    return item;
  }
