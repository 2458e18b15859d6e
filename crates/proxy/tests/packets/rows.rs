use std::{collections::BTreeSet, net::SocketAddr};

use podwire_proxy::mode::Description;
use podwire_testkit::packet_table::{self, Outcome, Row};

use super::net::{Net, Seen, connect, modes};

/// So many attempts reach each of three endpoints but once in a billion runs.
const ATTEMPTS: usize = 60;

#[test]
fn every_row_of_the_packet_table() {
    for mode in modes() {
        let Some(net) = Net::build() else { return };
        let world = packet_table::world();
        let _proxy = net.proxy(mode, &world);
        for row in packet_table::rows() {
            check(&net, &row, mode);
        }
    }
}

fn check(net: &Net, row: &Row, mode: &Description) {
    let name = format!("{} ({} mode)", row.name, mode.name);
    let packet = row.packet;
    let attempt = || net.at(&packet.from, || connect(packet.to, packet.protocol));
    match &row.outcome {
        Outcome::Rejected => assert_eq!(attempt(), Seen::Refused, "{name}"),
        Outcome::Dropped => assert_eq!(attempt(), Seen::Nothing, "{name}"),
        Outcome::Untouched if packet.to.port() == 8080 => {
            assert_eq!(attempt(), Seen::Answer(packet.to.ip(), packet.from), "{name}");
        }
        // Nobody listens there: whatever comes back is not an endpoint.
        Outcome::Untouched => assert!(!matches!(attempt(), Seen::Answer(..)), "{name}"),
        Outcome::Sent(expected) => {
            // A mode that does not keep sources replaces every one.
            let expected: BTreeSet<_> =
                expected.iter().map(|(to, masqueraded)| (*to, *masqueraded || !mode.keeps_sources)).collect();
            let mut seen = BTreeSet::new();
            for _ in 0..ATTEMPTS {
                match attempt() {
                    Seen::Answer(endpoint, source) => {
                        let answer = (SocketAddr::new(endpoint, 8080), source != packet.from);
                        assert!(expected.contains(&answer), "{name}: {answer:?}, expected {expected:?}");
                        seen.insert(answer);
                    }
                    other => panic!("{name}: {other:?}"),
                }
                if seen == expected {
                    break;
                }
            }
            assert_eq!(seen, expected, "{name}");
        }
    }
}
