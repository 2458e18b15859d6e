//! Letting the host pass packets on for its containers.

use podwire_kernel::sysctl::{ProcSys, Sysctl};

use crate::{IpConfig, Result};

/// Lets the host forward packets of the families that `ips` are of.
pub fn enable(ips: &[IpConfig]) -> Result<()> {
    let any = |v4: bool| ips.iter().any(|ip| ip.address.addr().is_ipv4() == v4);
    if any(true) {
        ProcSys.ensure("net/ipv4/ip_forward", "1")?;
    }
    if any(false) {
        ProcSys.ensure("net/ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}
