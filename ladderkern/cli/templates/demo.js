for (const button of document.querySelectorAll(".command button")) {
  const code = button.closest(".command").querySelector("code");
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    } catch {
      getSelection().selectAllChildren(code); // no clipboard here: one key press is left to do
    }
  });
}
