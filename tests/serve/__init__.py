"""The server, over real sockets, with official clients and a browser."""
