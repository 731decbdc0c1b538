//! The server, played with bytes and with our client.

mod health;
mod hijacked;
mod listening;
mod plain;
mod stopping;
mod with_client;
