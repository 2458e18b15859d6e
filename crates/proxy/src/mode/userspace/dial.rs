//! How long to wait for a backend, and when to try which other one.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use super::balancer::Balancer;
use crate::plan::Backend;

/// How long the first, second, third and fourth slow backend may take to accept a connection (kube-proxy's ladder).
pub const PATIENCE: [Duration; 4] =
    [Duration::from_millis(250), Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];

/// The attempts to connect one client.
///
/// A backend that refuses costs nothing: each may be tried once. One that does not answer costs time, of which the
/// ladder has four steps; it is tried again when no other is left, since only a packet may have been lost.
#[derive(Debug, Default)]
pub struct Dial {
    refused: Vec<Backend>,
    slow: Vec<Backend>,
}

impl Dial {
    /// The backend to try next and until when, or `None`: give up.
    pub fn next(&self, balancer: &mut Balancer, client: IpAddr, now: Instant) -> Option<(Backend, Instant)> {
        let patience = PATIENCE.get(self.slow.len())?;
        let avoid = [self.refused.as_slice(), &self.slow].concat();
        let backend = balancer.pick(client, &avoid, now).or_else(|| balancer.pick(client, &self.refused, now))?;
        Some((backend, now + *patience))
    }

    /// A backend refused, or there is no way to it.
    pub fn refused(&mut self, backend: Backend) {
        self.refused.push(backend);
    }

    /// A backend did not answer in time.
    pub fn slow(&mut self, backend: Backend) {
        self.slow.push(backend);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 0, 9));

    fn backend(number: u8) -> Backend {
        Backend { address: [10, 244, 0, number].into(), port: 8080 }
    }

    fn balancer(count: u8) -> Balancer {
        let mut balancer = Balancer::default();
        balancer.set((0..count).map(backend).collect(), None);
        balancer
    }

    #[test]
    fn every_backend_may_refuse_once() {
        let (now, mut balancer, mut dial) = (Instant::now(), balancer(50), Dial::default());
        for number in 0..50 {
            assert_eq!(dial.next(&mut balancer, CLIENT, now), Some((backend(number), now + PATIENCE[0])));
            dial.refused(backend(number));
        }
        assert_eq!(dial.next(&mut balancer, CLIENT, now), None);
    }

    #[test]
    fn the_ladder_has_four_steps_over_other_backends_first() {
        let (now, mut balancer, mut dial) = (Instant::now(), balancer(3), Dial::default());
        dial.refused(backend(1));
        for (number, patience) in [0, 2, 0, 2].into_iter().zip(PATIENCE) {
            assert_eq!(dial.next(&mut balancer, CLIENT, now), Some((backend(number), now + patience)));
            dial.slow(backend(number));
        }
        assert_eq!(dial.next(&mut balancer, CLIENT, now), None);
    }

    #[test]
    fn a_lone_backend_is_tried_again_when_it_is_slow_and_given_up_when_it_refuses() {
        let (now, mut balancer, mut dial) = (Instant::now(), balancer(1), Dial::default());
        dial.slow(backend(0));
        assert_eq!(dial.next(&mut balancer, CLIENT, now), Some((backend(0), now + PATIENCE[1])));
        dial.refused(backend(0));
        assert_eq!(dial.next(&mut balancer, CLIENT, now), None);
    }
}
