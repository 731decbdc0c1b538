//! Two small streams, in place of a crate of combinators.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use tokio::sync::mpsc;

/// What a channel receives.
#[derive(Debug)]
pub(crate) struct Received<T>(pub(crate) mpsc::Receiver<T>);

impl<T> Stream for Received<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        self.0.poll_recv(cx)
    }
}

/// A stream with a function over it.
pub(crate) struct Mapped<S, F> {
    stream: Pin<Box<S>>,
    map: F,
}

impl<S, F> Mapped<S, F> {
    pub(crate) fn new(stream: S, map: F) -> Self {
        Self {
            stream: Box::pin(stream),
            map,
        }
    }
}

impl<S: Stream, F: FnMut(S::Item) -> T + Unpin, T> Stream for Mapped<S, F> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let next = self.stream.as_mut().poll_next(cx);
        next.map(|item| item.map(&mut self.map))
    }
}
