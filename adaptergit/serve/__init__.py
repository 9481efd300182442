"""Serving: one base model, many adapters with their heads, and requests for different ones in one batch.

A request is checked (``messages.py``, ``app.py``), its texts become rows (``encoding.py``), rows wait until a batch is
worth it (``batching.py``), a batch is one forward of the model in which every row has its own adapter and head
(``mixing.py``), and what the head says becomes an answer (``answers.py``). ``service.py`` loads what is served,
``server.py`` opens the port.

:func:`serve` is what ``adaptergit serve`` runs. For an application of your own:
``adaptergit.serve.app.create_app(adaptergit.serve.service.open_service(["acme/adapters@sst2"]))``.
"""

from adaptergit.serve.server import Started, serve

__all__ = ["Started", "serve"]
