//! The mode over the real kernel, as stock tools see it: in the vm tier.

use std::{collections::BTreeSet, process::Command};

use podwire_model::{Family, Protocol};
use podwire_proxy::{
    Changes, Tracker,
    mode::{Mode, Settings, ipvs::MODE},
    plan::Me,
};
use podwire_testkit::{
    build::{node_port_service, service, slice},
    namespace::in_namespace,
    packet_table::{self, World},
};

use super::table::{settings, tracker};

/// Runs `test` in a namespace with a node's addresses, where the kernel has IPVS: not having it is a failure in the vm
/// tier, and elsewhere the netns tier's way.
fn in_the_machine(test: impl FnOnce() + Send) {
    in_namespace(|| {
        match (MODE.probe)() {
            Err(error) if std::env::var_os("PODWIRE_TIER").is_none_or(|tier| tier != "vm") => {
                return eprintln!("tested in the vm tier: {error}");
            }
            probed => probed.unwrap(),
        }
        for command in ["link set lo up", "link add eth0 type veth peer name other", "link set eth0 up"] {
            run("ip", &command.split(' ').collect::<Vec<_>>());
        }
        for address in ["172.25.2.1/24", "fd00:172:25::1/64"] {
            run("ip", &["address", "add", address, "dev", "eth0"]);
        }
        test();
    });
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn listed(program: &str, arguments: &[&str]) -> Vec<String> {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    run(program, arguments).lines().map(words).collect()
}

fn world() -> World {
    let mut six = service("six", "fd00:10:96::a");
    six.cluster_ips.push("10.96.0.12".parse().unwrap());
    let mut dns = service("dns", "10.96.0.11");
    dns.ports[0].protocol = Protocol::Udp;
    let mut of_dns = slice("dns", 53, &["10.244.0.4"]);
    of_dns.ports[0].protocol = Protocol::Udp;
    World {
        services: vec![node_port_service("web", "10.96.0.10", 30080), dns, six],
        slices: vec![
            slice("web", 8080, &["10.244.0.2", "10.244.0.3"]),
            of_dns,
            slice("six", 8080, &["fd00:10:244::2"]),
        ],
        ..packet_table::empty()
    }
}

fn start(world: &World, settings: &Settings) -> (Box<dyn Mode>, Tracker) {
    let mut tracker = tracker();
    tracker.set_services(world.services.clone());
    tracker.set_slices(world.slices.clone());
    ((MODE.open)(settings).unwrap(), tracker)
}

#[test]
fn stock_tools_show_what_kube_proxys_users_look_for() {
    in_the_machine(|| {
        let world = world();
        let (mut mode, mut tracker) = start(&world, &settings(&world));
        assert!(mode.apply(tracker.take_changes().unwrap()).unwrap().written > 20);
        let lines = listed("ipvsadm", &["-ln"]);
        let at = lines.iter().position(|line| line == "TCP 10.96.0.10:80 rr").unwrap_or_else(|| panic!("{lines:#?}"));
        let destinations: BTreeSet<_> = lines[at + 1..at + 3].iter().map(String::as_str).collect();
        assert_eq!(destinations, ["-> 10.244.0.2:8080 Masq 1 0 0", "-> 10.244.0.3:8080 Masq 1 0 0"].into());
        for line in
            ["TCP 172.25.2.1:30080 rr", "UDP 10.96.0.11:80 rr", "TCP [fd00:10:96::a]:80 rr", "TCP 10.96.0.12:80 rr"]
        {
            assert!(lines.iter().any(|found| found == line), "{line}: {lines:#?}");
        }
        let device = run("ip", &["-d", "address", "show", "kube-ipvs0"]);
        assert!(device.contains("NOARP") && device.contains("state DOWN") && device.contains("dummy"), "{device}");
        assert!(!device.contains(",UP"), "{device}");
        for address in ["inet 10.96.0.10/32 scope global kube-ipvs0", "inet6 fd00:10:96::a/128"] {
            assert!(device.contains(address), "{device}");
        }
        assert!(run("ipset", &["list", "KUBE-CLUSTER-IP"]).contains("10.96.0.10,tcp:80"));
        assert!(run("ipset", &["list", "KUBE-6-CLUSTER-IP"]).contains("fd00:10:96::a,tcp:80"));
        for key in ["conntrack", "expire_nodest_conn", "expire_quiescent_template"] {
            assert_eq!(
                std::fs::read_to_string(format!("/proc/thread-self/root/proc/sys/net/ipv4/vs/{key}")).unwrap(),
                "1\n"
            );
        }
        (MODE.cleanup)().unwrap();
        (MODE.cleanup)().unwrap();
    });
}

#[test]
fn a_restart_writes_nothing_and_a_cleanup_leaves_nothing() {
    in_the_machine(|| {
        // What the tables of iptables are before they are used the first time.
        let everything = || ["iptables-save", "ip6tables-save"].map(|program| rules(&run(program, &[])));
        let world = packet_table::world();
        let start = || {
            let (mut mode, mut tracker) = start(&world, &settings(&world));
            mode.apply(tracker.take_changes().unwrap()).unwrap()
        };
        let before = everything();
        assert!(start().written > 50);
        assert_ne!(everything(), before);
        let (servers, sets) = (run("ipvsadm", &["-Sn"]), run("ipset", &["save"]));
        let again = start();
        assert_eq!((again.written, again.full), (0, true));
        assert_eq!((run("ipvsadm", &["-Sn"]), run("ipset", &["save"])), (servers, sets));
        (MODE.cleanup)().unwrap();
        assert_eq!(everything(), before);
        assert_eq!((run("ipvsadm", &["-Sn"]), run("ipset", &["save"])), (String::new(), String::new()));
        assert!(!run("ip", &["link"]).contains("kube-ipvs0"));
    });
}

/// The rules that `iptables-save` printed, and the chains that are not the kernel's.
fn rules(saved: &str) -> Vec<String> {
    let is_rule = |line: &&str| line.starts_with("-A") || line.starts_with(":KUBE");
    saved.lines().filter(is_rule).map(str::to_owned).collect()
}

#[test]
fn what_is_deleted_by_hand_is_noticed_within_two_looks_and_comes_back() {
    in_the_machine(|| {
        let world = world();
        let (mut mode, mut tracker) = start(&world, &settings(&world));
        mode.apply(tracker.take_changes().unwrap()).unwrap();
        let state = || {
            let device = run("ip", &["-o", "address", "show", "dev", "kube-ipvs0"]);
            let device: BTreeSet<_> =
                device.lines().filter_map(|line| line.split_whitespace().nth(3).map(str::to_owned)).collect();
            let sorted = |text: String| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
            let chains = ["iptables-save", "ip6tables-save"].map(|program| rules(&run(program, &[])));
            (sorted(run("ipvsadm", &["-Sn"])), sorted(run("ipset", &["save"])), device, chains)
        };
        let before = state();
        while mode.disturbed().unwrap() {
            mode.apply(Changes::default()).unwrap();
        }
        for command in [
            "ipvsadm -C",
            "ipvsadm -D -t 10.96.0.10:80",
            "ipvsadm -d -t 10.96.0.10:80 -r 10.244.0.2:8080",
            "ipvsadm -e -t 10.96.0.10:80 -r 10.244.0.2:8080 -m -w 5",
            "ipvsadm -E -t 10.96.0.10:80 -s lc",
            "ipset del KUBE-CLUSTER-IP 10.96.0.10,tcp:80",
            "ipset flush KUBE-IPVS-IPS",
            "ip address del 10.96.0.10/32 dev kube-ipvs0",
            "ip link del kube-ipvs0",
            "iptables -t nat -F KUBE-IPVS-SERVICES",
            "iptables -t mangle -F PREROUTING",
        ] {
            let words: Vec<_> = command.split(' ').collect();
            run(words[0], &words[1..]);
            assert!(mode.disturbed().unwrap() || mode.disturbed().unwrap(), "{command}: not noticed");
            mode.apply(Changes::default()).unwrap();
            mode.tidy().unwrap();
            assert_eq!(state(), before, "{command}");
        }
        assert!(!mode.disturbed().unwrap() && !mode.disturbed().unwrap());
        (MODE.cleanup)().unwrap();
    });
}

#[test]
fn every_scheduler_of_the_kernel_serves_and_a_missing_one_is_named() {
    in_the_machine(|| {
        let world = world();
        for scheduler in podwire_kernel::ipvs::SCHEDULERS {
            let mut settings = settings(&world);
            settings.ipvs.scheduler = scheduler.to_owned();
            let (mut mode, mut tracker) = start(&world, &settings);
            match mode.apply(tracker.take_changes().unwrap()) {
                // Debian 12 leaves this one out.
                Err(error) if scheduler == "twos" => {
                    assert!(error.to_string().contains("is the module ip_vs_twos loaded?"), "{error}");
                }
                applied => assert!(applied.unwrap().written > 0),
            }
            let servers = run("ipvsadm", &["-Sn"]);
            assert!(
                scheduler == "twos" || servers.contains(&format!("-A -t 10.96.0.10:80 -s {scheduler}")),
                "{servers}"
            );
        }
        (MODE.cleanup)().unwrap();
    });
}

#[test]
fn timeouts_and_affinity_are_the_kernels() {
    in_the_machine(|| {
        let mut world = world();
        world.services[0].client_ip_affinity = Some(std::time::Duration::from_secs(10800));
        let mut settings = settings(&world);
        settings.ipvs.timeouts = [1000, 0, 30].map(std::time::Duration::from_secs);
        let (mut mode, mut tracker) = start(&world, &settings);
        mode.apply(tracker.take_changes().unwrap()).unwrap();
        let timeouts = listed("ipvsadm", &["-l", "--timeout"]);
        assert_eq!(timeouts, ["Timeout (tcp tcpfin udp): 1000 120 30"]);
        assert!(listed("ipvsadm", &["-ln"]).contains(&"TCP 10.96.0.10:80 rr persistent 10800".to_owned()));
        (MODE.cleanup)().unwrap();
    });
}

/// 250 Services of 10 endpoints: what the whole of it, a restart and one change take here is told, not judged; that they
/// write what they should is.
#[test]
fn a_larger_cluster() {
    in_the_machine(|| {
        let (mut services, mut slices) = (Vec::new(), Vec::new());
        for number in 0..250_u32 {
            let name = format!("web-{number}");
            services
                .push(service(&name, &format!("10.{}.{}.{}", 96 + (number >> 16), number >> 8 & 255, number & 255)));
            let [_, a, b, _] = (number << 8).to_be_bytes();
            let endpoints: Vec<_> = (0..10).map(|n| format!("10.{}.{b}.{n}@node2", 128 + a)).collect();
            slices.push(slice(&name, 80, &endpoints.iter().map(String::as_str).collect::<Vec<_>>()));
        }
        let world = World { services, slices, ..packet_table::empty() };
        let mut tracker = Tracker::new(Me { node: "node1".into(), ..Me::default() });
        tracker.set_services(world.services.clone());
        tracker.set_slices(world.slices.clone());
        let settings = settings(&world);
        let timed = |what: &str, mode: &mut Box<dyn Mode>, changes| {
            let begin = std::time::Instant::now();
            let done = mode.apply(changes).unwrap();
            println!("{what}: {:?}, {} written", begin.elapsed(), done.written);
            done.written
        };
        let mut mode = (MODE.open)(&settings).unwrap();
        assert!(timed("first sync", &mut mode, tracker.take_changes().unwrap()) > 2_500);
        for _ in 0..5 {
            let mut more = slice("web-7", 80, &["10.250.0.1@node2"]);
            more.name = podwire_testkit::build::name("web-7-2");
            tracker.slice(more.clone());
            assert_eq!(timed("one endpoint more", &mut mode, tracker.take_changes().unwrap()), 1);
            tracker.slice_gone(&more.name);
            assert_eq!(timed("one endpoint less", &mut mode, tracker.take_changes().unwrap()), 1);
            mode.tidy().unwrap();
        }
        let begin = std::time::Instant::now();
        for _ in 0..8 {
            assert!(!mode.disturbed().unwrap());
        }
        println!("a look: {:?}", begin.elapsed() / 8);
        let mut mode = (MODE.open)(&settings).unwrap();
        assert_eq!(timed("restart", &mut mode, tracker.take_all().unwrap()), 0);
        assert_eq!(Family::V4, Family::of(&world.services[0].cluster_ips[0]));
    });
}
