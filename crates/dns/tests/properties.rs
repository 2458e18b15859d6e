//! What must hold for every input: messages and Corefiles from outside, and events in any order.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::sync::{Arc, LazyLock};

use common::{Folder, arrival, cluster, environment, external, name, service, slice, stock_corefile};
use domain::base::{Message, iana::Rtype};
use podwire_dns::{
    corefile::{Corefile, Loader, Nothing},
    message::{Query, Rejection, Reply, Transport, encode_rejection},
    program::Program,
    router::{Progress, Router},
    view::View,
};
use podwire_model::{EndpointSlice, ObjectName, Service};
use proptest::prelude::*;

fn router() -> Arc<Router> {
    let corefile = stock_corefile("/nonexistent/resolv.conf");
    let mut view = cluster();
    let endpoints: Vec<String> = (0..100).map(|n| format!("10.244.7.{n}")).collect();
    let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    view.apply_service(service("default/many", &[], &["web/tcp/80"]));
    view.apply_slice(slice("default/many-1", "many", &["web/tcp/80"], &endpoints));
    Program::new(&corefile, &environment(view)).unwrap().routers.into_values().next().unwrap()
}

/// Every plugin that answers or changes answers by itself, on the names that [`question`] asks for.
static EVERYTHING: LazyLock<Arc<Router>> = LazyLock::new(|| {
    let folder = Folder::new();
    let zone = folder.write(
        "db",
        "@ SOA a b 1 1 1 1 1\n*.svc CNAME web.default.svc\nweb.default.svc NS web\n_tcp DNAME svc\n@ TXT x\n",
    );
    let corefile = format!(
        r#".:0 {{
            bufsize 600
            any
            errors
            log . "{{combined}}{{/log/type}}"
            loadbalance {{
                prefer 10.0.0.0/8
            }}
            rewrite continue name regex (.*)web(.*) {{1}}headless{{2}} answer auto answer value (.*) {{1}}
            rewrite continue name suffix local local.cluster.local answer auto
            rewrite continue ttl substring a 5-6
            rewrite type TXT A
            template IN ANY default {{
                match ^(?P<a>[^.]*)[.](.*)$
                answer "{{{{ .Name }}}} 60 IN CNAME {{{{ .Group.a }}}}.svc.{{{{ index .Match 2 }}}}"
                fallthrough
            }}
            hosts /nonexistent/hosts svc {{
                10.244.0.5 web.default.svc *.default.svc
                fallthrough
            }}
            kubernetes cluster.local 10.in-addr.arpa
            file {zone} . {{
                reload 0
                fallthrough arpa
            }}
        }}"#
    );
    Program::new(&corefile, &environment(cluster())).unwrap().routers.into_values().next().unwrap()
});

/// Answers a packet as the server does, and checks the answer against what the client allows.
fn answer(router: &Arc<Router>, packet: &[u8], transport: Transport) {
    let (bytes, limit) = match Query::parse(packet, arrival(transport)) {
        Err(Rejection::Ignore) => return,
        Err(Rejection::Answer(code)) => (encode_rejection(packet, code), 512),
        Ok(query) => match router.begin(&query) {
            Progress::Done(reply) => (reply.encode(&query, Vec::new()), query.size_limit()),
            Progress::Waiting(_) => panic!("there is no upstream to wait for"),
        },
    };
    assert!(bytes.len() <= limit, "{} bytes, {limit} allowed", bytes.len());
    let message = Message::from_octets(bytes).unwrap();
    assert!(message.header().qr());
    assert_eq!(message.header().id().to_be_bytes(), packet[..2]);
    assert_eq!(message.iter().filter(Result::is_err).count(), 0);
}

/// A question about the test cluster, with EDNS of a size of its own.
fn question() -> impl Strategy<Value = Vec<u8>> {
    let label = prop_oneof!["[a-z0-9_-]{1,12}", Just("_web".into()), Just("_tcp".into()), Just("10-244-0-5".into())];
    let name = prop_oneof![
        (prop::collection::vec(label, 0..3), prop::sample::select(vec!["web", "headless", "ext", "many", "asleep"]))
            .prop_map(|(labels, service)| [labels, vec![service.into(), "default".into(), "svc".into()]].concat()),
        Just(vec!["5".into(), "0".into(), "244".into(), "10".into(), "in-addr".into(), "arpa".into()]),
    ];
    let qtype =
        prop::sample::select(vec![Rtype::A, Rtype::AAAA, Rtype::SRV, Rtype::PTR, Rtype::ANY, Rtype::SOA, Rtype::TXT]);
    (name, qtype, any::<bool>(), prop::option::of(prop_oneof![0..2000_u16, any::<u16>()])).prop_map(
        |(mut labels, qtype, in_zone, edns)| {
            if in_zone && labels.last().unwrap() != "arpa" {
                labels.extend(["cluster".into(), "LOCAL".into()]);
            }
            let mut packet = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns.is_some())];
            for label in labels {
                packet.push(label.len() as u8);
                packet.extend(label.into_bytes());
            }
            packet.push(0);
            packet.extend(qtype.to_int().to_be_bytes());
            packet.extend([0, 1]);
            if let Some(size) = edns {
                packet.extend([0, 0, 41]);
                packet.extend(size.to_be_bytes());
                packet.extend([0; 6]);
            }
            packet
        },
    )
}

/// What can happen in a cluster, on few enough names that things meet.
#[derive(Debug, Clone)]
enum Change {
    Service(Service),
    NoService(ObjectName),
    Slice(EndpointSlice),
    NoSlice(ObjectName),
    Pod(ObjectName, u8),
    NoPod(ObjectName),
}

fn change() -> impl Strategy<Value = Change> {
    let service_name = || prop::sample::select(vec!["a/one", "a/two", "b/one"]);
    let slice_name = || prop::sample::select(vec!["a/s1", "a/s2", "b/s1"]);
    let kind = (service_name(), 0..4_u8, any::<bool>()).prop_map(|(name, kind, publish)| {
        let service = match kind {
            0 => service(name, &["10.96.0.1"], &["http/tcp/80"]),
            1 => service(name, &["10.96.0.2", "fd00::2"], &["dns/udp/53"]),
            2 => service(name, &[], &["http/tcp/80"]),
            _ => external(name, "example.org"),
        };
        Change::Service(Service { publish_not_ready: publish, ..service })
    });
    let endpoints = prop::sample::subsequence(vec!["10.0.0.1", "!10.0.0.2", "10.0.0.3=h", "10.0.0.1=h"], 0..4);
    let sliced = (slice_name(), prop::sample::select(vec!["one", "two"]), endpoints)
        .prop_map(|(name, service, endpoints)| Change::Slice(slice(name, service, &["http/tcp/80"], &endpoints)));
    prop_oneof![
        kind,
        sliced,
        service_name().prop_map(|text| Change::NoService(name(text))),
        slice_name().prop_map(|text| Change::NoSlice(name(text))),
        (service_name(), 0..3_u8).prop_map(|(text, last)| Change::Pod(name(text), last)),
        service_name().prop_map(|text| Change::NoPod(name(text))),
    ]
}

fn apply(view: &mut View, change: Change) {
    match change {
        Change::Service(service) => view.apply_service(service),
        Change::NoService(name) => view.delete_service(&name),
        Change::Slice(slice) => view.apply_slice(slice),
        Change::NoSlice(name) => view.delete_slice(&name),
        Change::Pod(name, last) => view.apply_pod(name, vec![[10, 0, 0, last].into()]),
        Change::NoPod(name) => view.delete_pod(&name),
    }
}

/// What is there in the end, by the last change of each object: the specification of [`View`].
fn last_state(changes: &[Change]) -> (Vec<Service>, Vec<EndpointSlice>, Vec<(ObjectName, u8)>) {
    let (mut services, mut slices, mut pods) = (Vec::new(), Vec::new(), Vec::new());
    for change in changes {
        match change.clone() {
            Change::Service(service) => {
                services.retain(|other: &Service| other.name != service.name);
                services.push(service);
            }
            Change::NoService(name) => services.retain(|other| other.name != name),
            Change::Slice(slice) => {
                slices.retain(|other: &EndpointSlice| other.name != slice.name);
                slices.push(slice);
            }
            Change::NoSlice(name) => slices.retain(|other| other.name != name),
            Change::Pod(name, last) => {
                pods.retain(|(other, _)| *other != name);
                pods.push((name, last));
            }
            Change::NoPod(name) => pods.retain(|(other, _)| *other != name),
        }
    }
    (services, slices, pods)
}

#[test]
fn every_size_is_respected() {
    let router = router();
    let question = b"\x04many\x07default\x03svc\x07cluster\x05local\0";
    for qtype in [Rtype::A, Rtype::SRV, Rtype::AAAA] {
        for size in (500..1800_u16).step_by(5) {
            let mut packet = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
            packet.extend(question);
            packet.extend(qtype.to_int().to_be_bytes());
            packet.extend([0, 1, 0, 0, 41]);
            packet.extend(size.to_be_bytes());
            packet.extend([0; 6]);
            answer(&router, &packet, Transport::Udp);
        }
    }
}

/// Two files, one of which imports the other and itself, and a variable that holds what is special.
struct Files;

impl Loader for Files {
    fn variable(&self, _name: &str) -> Option<String> {
        Some("} {$A} import a".to_owned())
    }

    fn files(&self, pattern: &str) -> std::io::Result<Vec<(String, String)>> {
        let text =
            if pattern == "f1" { "x\nimport f2 z {args[0]}\n}" } else { "import f1\n. {\n import a {args[0]}\n" };
        Ok(vec![(pattern.to_owned(), text.to_owned())])
    }
}

/// Whatever is wrong is at a place that is there, in the Corefile itself.
fn corefile_survives(text: &str) {
    for loader in [&Nothing as &dyn Loader, &Files] {
        if let Err(error) = Corefile::parse(text, loader) {
            assert_eq!(error.at.file, 0);
            let line = text.split('\n').nth(error.at.line - 1);
            assert!(line.is_some_and(|line| error.at.column <= line.chars().count() + 1), "{:.300}", error.to_string());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_survived(packet in prop::collection::vec(any::<u8>(), 0..600), tcp in any::<bool>()) {
        answer(&router(), &packet, if tcp { Transport::Tcp } else { Transport::Udp });
    }

    #[test]
    fn damaged_questions_are_survived(packet in question(), damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4)) {
        let router = router();
        answer(&router, &packet, Transport::Udp);
        let mut packet = packet;
        for (index, byte) in damage {
            let index = index.index(packet.len());
            packet[index] = byte;
            answer(&router, &packet[..=index], Transport::Udp);
        }
        answer(&router, &packet, Transport::Udp);
    }

    #[test]
    fn every_plugin_survives_damaged_questions(packet in question(), damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4)) {
        let router = EVERYTHING.clone();
        answer(&router, &packet, Transport::Udp);
        let mut packet = packet;
        for (index, byte) in damage {
            let index = index.index(packet.len());
            packet[index] = byte;
        }
        answer(&router, &packet, Transport::Udp);
        answer(&router, &packet, Transport::Tcp);
    }

    #[test]
    fn any_upstream_answer_is_survived(packet in question(), reply in prop::collection::vec(any::<u8>(), 0..200)) {
        let query = Query::parse(&packet, arrival(Transport::Udp)).unwrap();
        // The right header and question, so that the parser gets as far as the records.
        let mut bytes = packet[..packet.iter().skip(12).position(|byte| *byte == 0).unwrap() + 17].to_vec();
        bytes[2] = 0x80;
        bytes[7] = 2;
        bytes[11] = 1;
        bytes.extend(&reply);
        if let Ok(reply) = Reply::parse(bytes.into(), &query, query.id) {
            prop_assert!(reply.encode(&query, Vec::new()).len() <= query.size_limit());
        }
    }

    #[test]
    fn any_corefile_is_survived(text in "[.:53{}\"#\\\\ \n\ta-z0-9/$(),%]{0,200}") {
        corefile_survives(&text);
    }

    #[test]
    fn any_corefile_with_snippets_is_survived(words in prop::collection::vec(prop::sample::select(vec![
        "(a) {\n", "(b) {\n", "import a\n", "import b {args[0]}x y\n", "import f1\n", "import f2 {args[1]}\n", "}\n", ". {\n", "x {$A} {%A%}\n", "y {\n", "{args[0]}\n", "import\n", "\"q\nr\" ",
    ]), 0..30)) {
        corefile_survives(&words.concat());
    }

    #[test]
    fn a_view_depends_on_the_state_only(changes in prop::collection::vec(change(), 0..40)) {
        let mut stepwise = View::new();
        changes.iter().cloned().for_each(|change| apply(&mut stepwise, change));

        let (mut services, mut slices, mut pods) = last_state(&changes);
        let mut squashed = View::new();
        squashed.replace_services(services.clone());
        squashed.replace_slices(slices.clone());
        squashed.replace_pods(pods.iter().map(|(name, last)| (name.clone(), vec![[10, 0, 0, *last].into()])));
        prop_assert_eq!(&stepwise, &squashed);

        services.reverse();
        slices.reverse();
        pods.reverse();
        let mut reversed = View::new();
        pods.into_iter().for_each(|(name, last)| reversed.apply_pod(name, vec![[10, 0, 0, last].into()]));
        slices.iter().cloned().for_each(|slice| reversed.apply_slice(slice));
        services.iter().cloned().for_each(|service| reversed.apply_service(service));
        prop_assert_eq!(&stepwise, &reversed);

        // Emptied and filled again; then emptied for good.
        stepwise.replace_slices::<EndpointSlice>([]);
        stepwise.replace_services([]);
        stepwise.replace_services(services);
        stepwise.replace_slices(slices);
        prop_assert_eq!(&stepwise, &squashed);
        stepwise.replace_services([]);
        stepwise.replace_slices::<EndpointSlice>([]);
        stepwise.replace_pods([]);
        prop_assert_eq!(&stepwise, &View::new());
    }
}
