//! Bringing an image into a server's store, with what the server tells on the way.

use http::Method;
use http_body_util::BodyExt;

use super::Client;
use super::transport::{Call, broken};
use crate::api::error::restore;
use crate::api::pull::{WireEvent, WireImage, WirePull};
use crate::error::Error;
use crate::model::{ImageRef, PullProgress, PulledImage};

/// A longer line is no event.
const LONGEST_LINE: usize = 1 << 20;

impl Client {
    /// Brings an image into the server's store; `told` gets what happens on the way.
    ///
    /// # Errors
    /// [`Error::Invalid`] from a server that cannot do it, because it is not of our making or has
    /// an image plugin: there the image comes when a container is made of it.
    pub async fn pull(
        &self,
        image: &ImageRef,
        mut told: impl FnMut(PullProgress),
    ) -> Result<PulledImage, Error> {
        let pull = WirePull {
            image: WireImage {
                uri: image.uri.clone(),
                username: image.username.clone(),
                password: image.password.clone(),
            },
        };
        let call = Call::new(Method::POST, "/garden/v1/pull").json(&pull)?;
        let Some(response) = self.send_own(call).await? else {
            return Err(Error::Invalid("this server cannot pull images".to_owned()));
        };
        let mut body = response.into_body();
        let mut line = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|source| broken("a cut answer from", source))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            for byte in data {
                if byte != b'\n' {
                    line.push(byte);
                    continue;
                }
                let event = serde_json::from_slice(&line)
                    .map_err(|source| broken("cannot understand the answer of", source))?;
                line.clear();
                match event {
                    WireEvent::Progress(event) => told(event),
                    WireEvent::Done { image } => return Ok(image),
                    WireEvent::Failed { error, kind } => {
                        return Err(restore(error, kind.as_deref()));
                    }
                }
            }
            if line.len() > LONGEST_LINE {
                return Err(broken(
                    "cannot understand the answer of",
                    "a line without an end",
                ));
            }
        }
        Err(broken(
            "a cut answer from",
            "the image may be imported or not",
        ))
    }
}
