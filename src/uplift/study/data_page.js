"use strict";
(function () {
  var map = document.querySelector(".map");
  if (!map) return;
  var card = map.querySelector(".card-of-point");
  var pinned = null;
  var texts = new Map();
  map.querySelectorAll("circle").forEach(function (circle) {
    var title = circle.querySelector("title");
    texts.set(circle, title.textContent);
    title.remove();
  });
  function show(circle) {
    var parts = texts.get(circle).split("\n");
    card.replaceChildren();
    var head = document.createElement("b");
    head.textContent = parts[0];
    var body = document.createElement("span");
    body.textContent = parts.slice(1).join("\n");
    card.append(head, body);
    map.querySelectorAll("circle.on").forEach(function (other) { other.classList.remove("on"); });
    circle.classList.add("on");
  }
  map.addEventListener("pointerover", function (event) {
    if (!pinned && texts.has(event.target)) show(event.target);
  });
  map.addEventListener("click", function (event) {
    if (texts.has(event.target)) { pinned = pinned === event.target ? null : event.target; show(event.target); }
    else if (event.target.closest("svg")) { pinned = null; }
  });
  map.querySelectorAll("button").forEach(function (button) {
    button.addEventListener("click", function () {
      map.classList.remove("by-topic", "by-label");
      map.classList.add(button.value);
      map.querySelectorAll("button").forEach(function (other) { other.setAttribute("aria-pressed", String(other === button)); });
    });
  });
})();
