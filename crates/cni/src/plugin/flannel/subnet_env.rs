use std::{fs, io, path::Path};

use podwire_model::IpNet;

use crate::{Error, Result};

/// What flanneld tells its CNI plugin (`/run/flannel/subnet.env`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The pod networks of the whole cluster (`FLANNEL_NETWORK`, `FLANNEL_IPV6_NETWORK`; each may be a list).
    pub networks: Vec<IpNet>,
    /// This node's parts of them (`FLANNEL_SUBNET`, `FLANNEL_IPV6_SUBNET`), IPv4 first.
    pub subnets: Vec<IpNet>,
    /// The MTU of pods, in bytes.
    pub mtu: u32,
    /// Whether flanneld masquerades.
    pub ip_masq: bool,
}

impl SubnetEnv {
    /// Reads the file; `None` when there is none.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text)
                .map(Some)
                .map_err(|detail| Error::Decode { what: path.display().to_string(), detail }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", path, error)),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let value = |key: &str| {
            let lines = text.lines().filter_map(|line| line.trim().split_once('='));
            lines.filter(|(found, value)| *found == key && !value.is_empty()).map(|(_, value)| value).next_back()
        };
        let nets = |key: &str| {
            let nets = value(key).into_iter().flat_map(|nets| nets.split(','));
            let parse = |net: &str| net.parse::<IpNet>().map(|net| net.trunc());
            nets.map(|net| parse(net).map_err(|_| format!("{key} has {net:?}, which is no network")))
                .collect::<Result<Vec<_>, _>>()
        };
        let both = |v4: &str, v6: &str| {
            let mut all = nets(v4)?;
            all.extend(nets(v6)?);
            if all.is_empty() { Err(format!("neither {v4} nor {v6} is set")) } else { Ok(all) }
        };
        let required = |key: &str| value(key).ok_or_else(|| format!("{key} is not set"));
        Ok(Self {
            networks: both("FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK")?,
            subnets: both("FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET")?,
            mtu: required("FLANNEL_MTU")?.parse().map_err(|_| "FLANNEL_MTU is no number".to_owned())?,
            ip_masq: match required("FLANNEL_IPMASQ")? {
                "true" => true,
                "false" => false,
                other => return Err(format!("FLANNEL_IPMASQ is {other:?}, neither true nor false")),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WRITTEN: &str =
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    #[test]
    fn what_flanneld_writes_is_read() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let mut expected = SubnetEnv {
            networks: vec![net("10.244.0.0/16")],
            subnets: vec![net("10.244.1.0/24")],
            mtu: 1450,
            ip_masq: true,
        };
        assert_eq!(SubnetEnv::parse(WRITTEN).as_ref(), Ok(&expected));
        let dual = format!("{WRITTEN}FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\n");
        expected.networks.push(net("fd00::/48"));
        expected.subnets.push(net("fd00:0:0:1::/64"));
        assert_eq!(SubnetEnv::parse(&dual), Ok(expected));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (from, to, complaint) in [
            ("FLANNEL_SUBNET=10.244.1.1/24", "", "neither FLANNEL_SUBNET nor FLANNEL_IPV6_SUBNET is set"),
            ("10.244.1.1/24", "10.244.1.1/99", "FLANNEL_SUBNET has \"10.244.1.1/99\", which is no network"),
            ("1450", "many", "FLANNEL_MTU is no number"),
            ("FLANNEL_MTU=1450", "", "FLANNEL_MTU is not set"),
            ("true", "yes", "FLANNEL_IPMASQ is \"yes\", neither true nor false"),
        ] {
            assert_eq!(SubnetEnv::parse(&WRITTEN.replace(from, to)), Err(complaint.to_owned()));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "(FLANNEL_(NETWORK|SUBNET|MTU|IPMASQ)?=?[0-9./,a-z]{0,12}\n?){0,6}") {
            _ = SubnetEnv::parse(&text);
        }
    }
}
