"""Every kernel with tricks. The rest of the package works, slower, without this folder."""
