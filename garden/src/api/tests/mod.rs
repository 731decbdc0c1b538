//! The server, played with bytes and with our client.

mod hijacked;
mod plain;
mod stopping;
mod with_client;
