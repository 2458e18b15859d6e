use podwire_kernel::nftables::Fake;
use serde_json::json;

use super::*;
use crate::test_support::Folder;

fn config(host_port: u16) -> Config {
    let fields = json!({
        "cniVersion": "1.1.0", "name": "net", "type": "portmap",
        "runtimeConfig": {"portMappings": [
            {"hostPort": host_port, "containerPort": 80},
            {"hostPort": host_port, "containerPort": 81, "protocol": "sctp", "hostIP": "192.0.2.1"},
        ]},
    });
    Config::of(&crate::test_support::call(crate::Verb::Add, "box", &fields).unwrap()).unwrap()
}

fn ip(last: u8) -> IpAddr {
    [10, 1, 0, last].into()
}

/// Owners of what is in the table.
fn owners(fake: &mut Fake) -> Vec<String> {
    let table = table::table(Family::V4);
    let elements = table::SETS.iter().flat_map(|set| fake.elements(&table, set).unwrap());
    let mut owners: Vec<String> = elements.filter_map(|element| Some(element.comment?.to_string())).collect();
    owners.sort();
    owners.dedup();
    owners
}

#[test]
fn what_is_left_of_containers_that_are_gone_gives_way() {
    let folder = Folder::new();
    let mut fake = Fake::new();
    let mut publish = |host_port, last, owner: &str| {
        let mut publisher = Publisher::new(&mut fake, Family::V4, folder.path());
        let published = publisher.publish(&config(host_port), ip(last), owner);
        let owners = owners(&mut fake);
        published.map(|()| owners)
    };
    assert_eq!(publish(1000, 2, "net/a/eth0").unwrap(), ["net/a/eth0"]);
    assert_eq!(publish(1000, 2, "net/a/eth0").unwrap(), ["net/a/eth0"], "ADD once more");
    let error = publish(1000, 3, "net/b/eth0").unwrap_err();
    assert_eq!(
        (error.code(), error.to_string()),
        (11, "host port 1000/tcp belongs to net/a/eth0; try again".to_owned())
    );
    // Its address is another's now.
    assert_eq!(publish(2000, 2, "net/c/eth0").unwrap(), ["net/c/eth0"]);
    assert_eq!(publish(1000, 3, "net/b/eth0").unwrap(), ["net/b/eth0", "net/c/eth0"]);
    // The runtime knows where it was.
    let cached = json!({"result": {"interfaces": [{"name": "eth0", "sandbox": "/run/netns/podwire-no-such"}]}});
    std::fs::write(folder.path().join("net-b-eth0"), cached.to_string()).unwrap();
    assert_eq!(publish(1000, 4, "net/d/eth0").unwrap(), ["net/c/eth0", "net/d/eth0"]);
    let mut publisher = Publisher::new(&mut fake, Family::V4, folder.path());
    publisher.disown(ip(2), "net/e/eth0").unwrap();
    assert_eq!(owners(&mut fake), ["net/d/eth0"]);
}

#[test]
fn failures_in_between_change_nothing_about_the_end() {
    let folder = Folder::new();
    let mut fake = Fake::new().failing_one_in(10);
    let mut until_done = |act: &dyn Fn(&mut Publisher<'_>) -> Result<()>| {
        for _ in 0..100 {
            let mut publisher = Publisher::new(&mut fake, Family::V4, folder.path());
            if act(&mut publisher).is_ok() {
                return;
            }
        }
        panic!("it never succeeds");
    };
    for n in 2_u8..40 {
        until_done(&|publisher| publisher.publish(&config(1000 + u16::from(n)), ip(n), &format!("net/{n}/eth0")));
    }
    for n in 2_u8..39 {
        let config = config(1000 + u16::from(n));
        let mappings: Vec<&Mapping> = config.mappings.iter().collect();
        until_done(&|publisher| publisher.release(&mappings, &format!("net/{n}/eth0")));
    }
    until_done(&|publisher| publisher.release(&config(1039).mappings.iter().collect::<Vec<_>>(), "net/other/eth0"));
    fake.heal();
    assert_eq!(owners(&mut fake), ["net/39/eth0"]);
    assert!(table::has_rules(&mut fake, Family::V4).unwrap());
    let held: usize = table::SETS.iter().map(|set| fake.elements(&table::table(Family::V4), set).unwrap().len()).sum();
    assert_eq!(held, 5, "two mappings, the container, two pairs to masquerade");
}
