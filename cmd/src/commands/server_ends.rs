//! Flags of `garden server` for how long the end of a container or a pea may take.

use std::time::Duration;

use clap::Args;
use garden::manager::Ending;

use crate::values;

/// How long ends may take before somebody is told.
#[derive(Debug, Args)]
pub(crate) struct EndArgs {
    /// Killed processes may take so long to be gone, like 10s; then a destroy fails and names one
    #[arg(long, value_name = "TIME", value_parser = values::time, default_value = "10s")]
    destroy_timeout: Duration,
    /// A destroy waits so long for the clients of dead processes to be told
    #[arg(long, value_name = "TIME", value_parser = values::time, default_value = "2s")]
    destroy_told_timeout: Duration,
    /// A step of cleaning up that takes longer is shown as stuck, and goes on without keeping others
    #[arg(long, value_name = "TIME", value_parser = values::time, default_value = "10s")]
    teardown_timeout: Duration,
}

impl EndArgs {
    /// As the server wants it.
    pub(crate) fn ending(&self) -> Ending {
        Ending {
            death: self.destroy_timeout,
            announcement: self.destroy_told_timeout,
            stage: self.teardown_timeout,
        }
    }
}
