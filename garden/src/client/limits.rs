//! Calls about limits and use that Garden's API has no words for.

use http::Method;

use super::Client;
use super::transport::{Call, path};
use crate::error::Error;
use crate::model::{Handle, LimitsChange, LimitsInForce, Metrics};

fn of(handle: &Handle, what: &str) -> String {
    path(&["garden", "v1", "containers", handle.as_str(), what])
}

impl Client {
    /// All limits of a container, with what the kernel has of them.
    pub async fn limits_in_force(&self, handle: &Handle) -> Result<LimitsInForce, Error> {
        self.ask(self.get(of(handle, "limits"))).await
    }

    /// Changes limits of a container that runs; returns what holds then.
    pub async fn change_limits(
        &self,
        handle: &Handle,
        change: &LimitsChange,
    ) -> Result<LimitsInForce, Error> {
        let call = Call::new(Method::PUT, of(handle, "limits"));
        self.ask(call.json(change)).await
    }

    /// What a container, or a running pea by its id, uses; with what could not be measured.
    pub async fn usage(&self, handle: &Handle) -> Result<Metrics, Error> {
        self.ask(self.get(of(handle, "metrics"))).await
    }
}
