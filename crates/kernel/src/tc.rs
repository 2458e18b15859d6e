//! Traffic control: how fast a link sends, and where what it receives goes first (`man tc`, `linux/pkt_sched.h`,
//! `linux/pkt_cls.h`).

use crate::{
    Result, ResultExt,
    netlink::{Protocol, Socket, attributes, flags, push_attribute, u32_at},
};

/// A token bucket (`man tc-tbf`): at most `rate` for long, `burst` at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    /// Bytes a second.
    pub rate: u64,
    /// Bytes that may leave at once; less than one packet of the link lets nothing through.
    pub burst: u32,
    /// Bytes that may wait; more are dropped.
    pub limit: u32,
}

/// Traffic control in the network namespace that the opening thread was in.
#[derive(Debug)]
pub struct TrafficControl(Socket);

const NEW_QDISC: u16 = libc::RTM_NEWQDISC;
const DEL_QDISC: u16 = libc::RTM_DELQDISC;
const GET_QDISC: u16 = libc::RTM_GETQDISC;
const NEW_FILTER: u16 = libc::RTM_NEWTFILTER;
const GET_FILTER: u16 = libc::RTM_GETTFILTER;

const ROOT: u32 = 0xffff_ffff;
/// `TC_H_INGRESS`, and the handle that its queueing discipline always has.
const INGRESS: u32 = 0xffff_fff1;
const INGRESS_HANDLE: u32 = 0xffff_0000;
/// 1:0, as good as any.
const HANDLE: u32 = 0x0001_0000;

const KIND: u16 = 1;
const OPTIONS: u16 = 2;
/// Bytes of `struct tcmsg`.
const HEADER: usize = 20;

mod tbf {
    pub const PARAMETERS: u16 = 1;
    pub const RATE64: u16 = 4;
    pub const BURST: u16 = 6;
}

mod u32_filter {
    pub const SELECTOR: u16 = 5;
    pub const ACTIONS: u16 = 7;
    /// `TC_U32_TERMINAL`.
    pub const TERMINAL: u8 = 1;
}

mod action {
    pub const KIND: u16 = 1;
    pub const OPTIONS: u16 = 2;
    pub const MIRRED_PARAMETERS: u16 = 2;
    /// `TC_ACT_STOLEN`: the packet is somebody else's now.
    pub const STOLEN: u32 = 4;
    /// `TCA_EGRESS_REDIR`: it is sent by another link instead.
    pub const REDIRECT: u32 = 1;
}

impl TrafficControl {
    /// Opens the netlink socket.
    ///
    /// # Errors
    /// The kernel has no rtnetlink socket to give.
    pub fn open() -> Result<Self> {
        Ok(Self(Socket::open(Protocol::Route)?))
    }

    /// Limits what the link with index `device` sends, in place of what limited it.
    ///
    /// # Errors
    /// ENODEV for a missing link; ENOENT where the kernel lacks `sch_tbf`; EINVAL for a bucket without room.
    pub fn limit(&mut self, device: u32, bucket: &TokenBucket) -> Result<()> {
        let mut body = header(device, HANDLE, ROOT, 0);
        push_attribute(&mut body, KIND, b"tbf\0");
        push_attribute(&mut body, OPTIONS, &token_bucket(bucket));
        let what = format_args!("limit what link #{device} sends to {bucket:?}");
        self.0.request(NEW_QDISC, flags::CREATE | flags::REPLACE, &body, what).map(drop)
    }

    /// Ends that; that there is no limit is no error.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn unlimit(&mut self, device: u32) -> Result<()> {
        let body = header(device, HANDLE, ROOT, 0);
        let done = self.0.request(DEL_QDISC, 0, &body, format_args!("unlimit what link #{device} sends"));
        // EINVAL: what is there has another handle, as the kernel's own has.
        done.map(drop).or_gone().or_else(|error| if error.is_invalid_argument() { Ok(()) } else { Err(error) })
    }

    /// Rate (bytes a second) and limit (bytes) of what the link sends, if a token bucket limits it. The kernel does not
    /// tell the burst.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn limit_of(&mut self, device: u32) -> Result<Option<(u64, u32)>> {
        let body = header(device, 0, 0, 0);
        let found = self.0.dump(GET_QDISC, 0, &body, format_args!("list queueing disciplines of link #{device}"))?;
        let ours = |payload: &[u8]| u32_at(payload, 4) == Some(device) && u32_at(payload, 12) == Some(ROOT);
        Ok(found.iter().filter(|message| ours(message.payload)).find_map(|message| read_token_bucket(message.payload)))
    }

    /// Sends whatever the link with index `device` receives by the link with index `to`, before anybody else sees it.
    ///
    /// # Errors
    /// ENODEV for a missing link; ENOENT where the kernel lacks `sch_ingress`, `cls_u32` or `act_mirred`; EEXIST when its
    /// packets go elsewhere already.
    pub fn redirect(&mut self, device: u32, to: u32) -> Result<()> {
        let mut body = header(device, INGRESS_HANDLE, INGRESS, 0);
        push_attribute(&mut body, KIND, b"ingress\0");
        let create = flags::CREATE | flags::EXCLUSIVE;
        let what = format_args!("look at what link #{device} receives");
        self.0.request(NEW_QDISC, create, &body, what).map(drop).or_exists()?;
        let mut body = header(device, 0, INGRESS_HANDLE, priority_and_protocol());
        push_attribute(&mut body, KIND, b"u32\0");
        push_attribute(&mut body, OPTIONS, &everything_to(to));
        let what = format_args!("send what link #{device} receives by link #{to}");
        self.0.request(NEW_FILTER, create, &body, what).map(drop)
    }

    /// The link that [`TrafficControl::redirect`] sends by.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn redirect_of(&mut self, device: u32) -> Result<Option<u32>> {
        let body = header(device, 0, INGRESS_HANDLE, 0);
        let what = format_args!("list filters of what link #{device} receives");
        match self.0.dump(GET_FILTER, 0, &body, what) {
            Ok(found) => Ok(found.iter().find_map(|message| read_redirect(message.payload))),
            Err(error) if error.is_not_found() || error.is_invalid_argument() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// `struct tcmsg`.
fn header(device: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    for word in [device, handle, parent, info] {
        body.extend_from_slice(&word.to_ne_bytes());
    }
    body
}

/// The first filter, for frames of every protocol.
fn priority_and_protocol() -> u32 {
    const PRIORITY: u32 = 1;
    PRIORITY << 16 | u32::from((libc::ETH_P_ALL as u16).to_be())
}

fn token_bucket(bucket: &TokenBucket) -> Vec<u8> {
    // `struct tc_tbf_qopt`: two rates (the second, of peaks, unused), limit, and two numbers that newer attributes replace.
    let rate = u32::try_from(bucket.rate).unwrap_or(u32::MAX);
    let mut parameters = rate_specification(rate);
    parameters.extend_from_slice(&[0; 12]);
    for word in [bucket.limit, 0, 0] {
        parameters.extend_from_slice(&word.to_ne_bytes());
    }
    let mut options = Vec::new();
    push_attribute(&mut options, tbf::PARAMETERS, &parameters);
    push_attribute(&mut options, tbf::BURST, &bucket.burst.to_ne_bytes());
    if bucket.rate >= u64::from(u32::MAX) {
        push_attribute(&mut options, tbf::RATE64, &bucket.rate.to_ne_bytes());
    }
    options
}

/// `struct tc_ratespec` of Ethernet: no table of transmission times is needed then.
fn rate_specification(rate: u32) -> Vec<u8> {
    const ETHERNET: u8 = 1;
    let mut specification = vec![0, ETHERNET, 0, 0, 0, 0, 0, 0];
    specification.extend_from_slice(&rate.to_ne_bytes());
    specification
}

fn read_token_bucket(payload: &[u8]) -> Option<(u64, u32)> {
    let body = payload.get(HEADER..)?;
    if find(body, KIND)? != b"tbf\0" {
        return None;
    }
    let options = find(body, OPTIONS)?;
    let parameters = find(options, tbf::PARAMETERS)?;
    let rate64 =
        find(options, tbf::RATE64).and_then(|bytes| bytes.first_chunk()).map(|bytes| u64::from_ne_bytes(*bytes));
    Some((rate64.or(u32_at(parameters, 8).map(u64::from))?, u32_at(parameters, 24)?))
}

fn everything_to(to: u32) -> Vec<u8> {
    // `struct tc_u32_sel` with one key (`struct tc_u32_key`) whose mask is empty: it matches everything.
    let mut selector = vec![u32_filter::TERMINAL, 0, 1, 0];
    selector.resize(32, 0);
    // `struct tc_mirred`.
    let mut parameters = Vec::new();
    for word in [0, 0, action::STOLEN, 0, 0, action::REDIRECT, to] {
        parameters.extend_from_slice(&word.to_ne_bytes());
    }
    let nest = |inner: &[(u16, &[u8])]| {
        let mut bytes = Vec::new();
        inner.iter().for_each(|(kind, value)| push_attribute(&mut bytes, *kind, value));
        bytes
    };
    let mirred = nest(&[(action::MIRRED_PARAMETERS, &parameters)]);
    let first = nest(&[(action::KIND, b"mirred\0"), (action::OPTIONS, &mirred)]);
    let actions = nest(&[(1, &first)]);
    nest(&[(u32_filter::SELECTOR, &selector), (u32_filter::ACTIONS, &actions)])
}

fn read_redirect(payload: &[u8]) -> Option<u32> {
    let options = find(payload.get(HEADER..)?, OPTIONS)?;
    let first = find(find(options, u32_filter::ACTIONS)?, 1)?;
    let parameters = find(find(first, action::OPTIONS)?, action::MIRRED_PARAMETERS)?;
    (find(first, action::KIND)? == b"mirred\0").then_some(u32_at(parameters, 24)?)
}

fn find(body: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(body).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::{
        route::{NewLink, NewLinkKind, Peer, Route, RouteSocket},
        test_support::in_new_netns,
    };

    fn tc(arguments: &str) -> String {
        let output = Command::new("tc").args(arguments.split(' ')).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    fn two_links() -> (u32, u32) {
        let mut route = RouteSocket::open().unwrap();
        let peer = Peer { name: "far", mac: None, mtu: None, netns: None };
        let near = route.create_link(&NewLink::new("near", NewLinkKind::Veth(peer))).unwrap();
        let ifb = route.create_link(&NewLink { up: true, ..NewLink::new("ifb9", NewLinkKind::Ifb) }).unwrap();
        (near.index, ifb.index)
    }

    #[test]
    fn a_link_is_limited_as_tc_would_do_it() {
        in_new_netns(|| {
            let (near, _) = two_links();
            let mut kernel = TrafficControl::open().unwrap();
            assert_eq!(kernel.limit_of(near).unwrap(), None);
            kernel.limit(near, &TokenBucket { rate: 1_000_000, burst: 65_536, limit: 90_536 }).unwrap();
            let seen = tc("-d qdisc show dev near");
            assert!(seen.contains("qdisc tbf 1: root") && seen.contains("rate 8Mbit burst 64Kb"), "{seen}");
            assert!(seen.contains("lat 25ms"), "{seen}");
            assert_eq!(kernel.limit_of(near).unwrap(), Some((1_000_000, 90_536)));
            let fast = TokenBucket { rate: 10_000_000_000, burst: 1_000_000, limit: 2_000_000 };
            kernel.limit(near, &fast).unwrap();
            assert_eq!(kernel.limit_of(near).unwrap(), Some((10_000_000_000, 2_000_000)));
            for _ in 0..2 {
                kernel.unlimit(near).unwrap();
                assert_eq!(kernel.limit_of(near).unwrap(), None);
            }
            assert!(kernel.limit(999, &fast).unwrap_err().is_not_found());
        });
    }

    #[test]
    fn what_a_link_receives_goes_elsewhere() {
        in_new_netns(|| {
            let (near, ifb) = two_links();
            let mut kernel = TrafficControl::open().unwrap();
            assert_eq!(kernel.redirect_of(near).unwrap(), None);
            kernel.redirect(near, ifb).unwrap();
            let seen = tc("filter show dev near parent ffff:");
            assert!(seen.contains("match 00000000/00000000 at 0"), "{seen}");
            assert!(seen.contains("mirred (Egress Redirect to device ifb9) stolen"), "{seen}");
            assert_eq!(kernel.redirect_of(near).unwrap(), Some(ifb));
            assert!(kernel.redirect(999, ifb).unwrap_err().is_not_found());
        });
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            _ = (read_token_bucket(&bytes), read_redirect(&bytes));
        }
    }
}
