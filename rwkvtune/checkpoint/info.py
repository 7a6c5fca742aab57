"""How the result of an inspection shows itself."""

from html import escape

_MANY = ("layers", "keys_sample")


class CheckpointInfo(dict):
    """The facts of a weight file, as `inspect_checkpoint` returns them: a dict that prints and shows itself as a table."""

    def _rows(self):
        """(name, text) of what is worth a line, those of detected_config after the file's own."""
        rows = [("file", self["checkpoint_path"]), ("size", f"{self['file_size_mb']:.1f} MB"), ("parameters", f"{self['num_parameters']:,}")]
        if "detection_error" in self:
            return [*rows, ("not a model", self["detection_error"])]
        for name, value in self["detected_config"].items():
            if value is not None and value is not False and name not in _MANY:
                rows.append((name, f"{value:,}" if type(value) is int else str(value)))
        kinds = [layer["time_mix"] for layer in self["detected_config"]["layers"]]
        return [*rows, ("layers", ", ".join(kinds))] if len(set(kinds)) > 1 else rows

    def __repr__(self):
        rows = self._rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:{width}}  {text}" for name, text in rows)

    def _repr_html_(self):
        cells = "".join(
            f"<tr><td style='text-align:left'>{escape(name)}</td><td style='text-align:left'>{escape(text)}</td></tr>"
            for name, text in self._rows()
        )
        return f"<table>{cells}</table>"
