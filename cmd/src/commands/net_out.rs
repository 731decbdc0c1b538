//! `garden net-out`: let a container reach what the server's operator denies.

use std::net::IpAddr;

use anyhow::Result;
use clap::{Args, ValueEnum};
use garden::model::{Handle, NetOutRule, Protocol};

use crate::reach::Target;
use crate::values;

/// Let a container reach more of the network than it may by default
#[derive(Debug, Args)]
#[command(
    after_help = "Without --to everything, without --port all ports. Examples:
  garden net-out web --protocol tcp --to 10.0.8.0/24 --port 443 --port 8080-8090
  garden net-out web --protocol icmp --icmp 8
  garden net-out web --to 10.0.0.5 --log"
)]
pub(crate) struct NetOutArgs {
    /// The container
    #[arg(value_name = "NAME", value_parser = values::handle)]
    name: Handle,
    /// Which protocol
    #[arg(long, value_enum, default_value = "all")]
    protocol: Which,
    /// An address, FIRST-LAST or a network like 10.0.0.0/8; repeatable
    #[arg(long, value_name = "WHERE", value_parser = values::addresses)]
    to: Vec<(IpAddr, IpAddr)>,
    /// A port or FIRST-LAST, for tcp and udp; repeatable
    #[arg(long, value_name = "PORT", value_parser = values::ports)]
    port: Vec<(u16, u16)>,
    /// Kind of message, for icmp
    #[arg(long, value_name = "TYPE[/CODE]", value_parser = values::icmp)]
    icmp: Option<(u8, Option<u8>)>,
    /// Let the kernel log each new connection
    #[arg(long)]
    log: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Which {
    All,
    Tcp,
    Udp,
    Icmp,
    Icmp6,
}

/// Adds the rule.
pub(crate) async fn run(target: &Target, args: NetOutArgs) -> Result<u8> {
    let rule = NetOutRule {
        protocol: match args.protocol {
            Which::All => Protocol::All,
            Which::Tcp => Protocol::Tcp,
            Which::Udp => Protocol::Udp,
            Which::Icmp => Protocol::Icmp,
            Which::Icmp6 => Protocol::Icmp6,
        },
        networks: args.to,
        ports: args.port,
        icmp: args.icmp,
        log: args.log,
    };
    target.server().await?.net_out(&args.name, &[rule]).await?;
    Ok(0)
}
