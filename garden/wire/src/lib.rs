//! Messages between the server, the zygote and the shims.
