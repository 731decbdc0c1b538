//! Flags of `garden server` for what holds for the limits of all containers. Names are Guardian's.

use std::time::Duration;

use clap::Args;
use garden::cgroup::Policy;
use garden::manager::Options;
use garden::model::IoLimits;

use crate::values;

/// What holds for the limits of all containers.
#[derive(Debug, Args)]
pub(crate) struct ServerLimits {
    /// A memory limit does not limit swap
    #[arg(long)]
    disable_swap_limit: bool,
    /// Microseconds of CPU time in each 100 ms for each CPU share; 0 for any
    #[arg(long, value_name = "N", default_value_t = 0)]
    cpu_quota_per_share: u64,
    /// Share of the disks of a container that names none, 10 to 1000; 0 for the kernel's default
    #[arg(long, value_name = "N", default_value_t = 0)]
    default_container_blockio_weight: u64,
    /// Most bytes a second that a container reads from each disk; 0 for any
    #[arg(long, value_name = "SIZE", value_parser = rate, default_value = "0")]
    container_io_max_read_bps: u64,
    /// Most bytes a second that a container writes to each disk; 0 for any
    #[arg(long, value_name = "SIZE", value_parser = rate, default_value = "0")]
    container_io_max_write_bps: u64,
    /// Most reads a second of a container from each disk; 0 for any
    #[arg(long, value_name = "N", default_value_t = 0)]
    container_io_max_read_iops: u64,
    /// Most writes a second of a container to each disk; 0 for any
    #[arg(long, value_name = "N", default_value_t = 0)]
    container_io_max_write_iops: u64,
    /// Hundredths of a CPU that each CPU share entitles to; 0 divides the host by its memory
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0, value_parser = percent)]
    cpu_entitlement_per_share: f64,
    /// Put containers that used more CPU than they are entitled to behind the others
    #[arg(long)]
    enable_cpu_throttling: bool,
    /// Seconds between two looks for such containers
    #[arg(long, value_name = "SECONDS", default_value_t = 15,
          value_parser = clap::value_parser!(u32).range(1..))]
    cpu_throttling_check_interval: u32,
}

fn rate(text: &str) -> Result<u64, String> {
    if text == "0" {
        return Ok(0);
    }
    values::size(text)
}

fn percent(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok(number),
        _ => Err(format!("{text:?}: give a number of hundredths, like 0.5")),
    }
}

impl ServerLimits {
    /// Adds them to a server's options.
    pub(crate) fn apply(self, options: &mut Options) {
        let given = |number: u64| (number > 0).then_some(number);
        options.cgroups = Policy {
            leave_swap: self.disable_swap_limit,
            cpu_quota_per_share: given(self.cpu_quota_per_share),
            io: IoLimits {
                weight: given(self.default_container_blockio_weight),
                read_bps: given(self.container_io_max_read_bps),
                write_bps: given(self.container_io_max_write_bps),
                read_iops: given(self.container_io_max_read_iops),
                write_iops: given(self.container_io_max_write_iops),
            },
        };
        let per_share = self.cpu_entitlement_per_share;
        options.cpu_entitlement_per_share = (per_share > 0.0).then_some(per_share);
        options.throttling = self
            .enable_cpu_throttling
            .then(|| Duration::from_secs(self.cpu_throttling_check_interval.into()));
    }
}
