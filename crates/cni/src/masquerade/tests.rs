use podwire_kernel::nftables::Fake;

use super::*;

fn ips(texts: &[&str]) -> Vec<IpConfig> {
    let config = |text: &&str| IpConfig { interface: None, address: text.parse().unwrap(), gateway: None };
    texts.iter().map(config).collect()
}

fn owners(nftables: &mut Fake) -> Vec<String> {
    let elements = [Family::V4, Family::V6].map(|family| nftables.elements(&table(family), PODS).unwrap_or_default());
    let mut owners: Vec<String> = elements.iter().flatten().map(|it| it.comment.as_deref().unwrap().into()).collect();
    owners.sort();
    owners
}

#[test]
fn the_second_container_is_one_more_element() {
    let mut fake = Fake::new();
    put(&mut fake, "net/a/eth0", &ips(&["10.1.0.2/24", "fd00::2/64"])).unwrap();
    fake.take_commits();
    put(&mut fake, "net/b/eth0", &ips(&["10.1.0.3/24", "fd00::3/64"])).unwrap();
    let commits = fake.take_commits();
    assert_eq!(commits.iter().map(Batch::len).collect::<Vec<_>>(), [2]);
    put(&mut fake, "net/c/eth0", &ips(&["10.2.0.3/24"])).unwrap();
    assert_eq!(owners(&mut fake), ["net/a/eth0", "net/a/eth0", "net/b/eth0", "net/b/eth0", "net/c/eth0"]);

    take(&mut fake, "net/b/eth0", &ips(&["10.1.0.3/24", "fd00::3/64"])).unwrap();
    take(&mut fake, "net/b/eth0", &ips(&["10.1.0.2/24", "10.9.0.2/24"])).unwrap();
    take_all(&mut fake, &|owner| owner == "net/c/eth0").unwrap();
    assert_eq!(owners(&mut fake), ["net/a/eth0", "net/a/eth0"], "what others have stays");
}

#[test]
fn an_address_passes_to_its_new_owner() {
    let mut fake = Fake::new();
    put(&mut fake, "net/crashed/eth0", &ips(&["10.1.0.2/24"])).unwrap();
    put(&mut fake, "net/a/eth0", &ips(&["10.1.0.2/16"])).unwrap();
    assert_eq!(owners(&mut fake), ["net/a/eth0"]);
    let element = get(&mut fake, &ips(&["10.1.0.2/16"])[0]).unwrap().unwrap();
    assert_eq!(element.data, Mapped::Verdict(Verdict::Goto("beyond-10.1.0.0/16".into())));
    take(&mut fake, "net/crashed/eth0", &ips(&["10.1.0.2/24"])).unwrap();
    assert_eq!(owners(&mut fake), ["net/a/eth0"]);
}

#[test]
fn a_failure_is_told_and_tried_again_with_success() {
    let mut fake = Fake::new().failing_one_in(10);
    let mut failures = 0;
    for n in 2..60 {
        let (ips, owner) = (ips(&[&format!("10.1.0.{n}/24"), &format!("fd00::{n}/64")]), format!("net/{n}/eth0"));
        while put(&mut fake, &owner, &ips).is_err() {
            failures += 1;
        }
        while n % 2 == 0 && take(&mut fake, &owner, &ips).is_err() {
            failures += 1;
        }
    }
    fake.heal();
    assert!(failures > 5, "{failures}");
    assert_eq!(owners(&mut fake).len(), 2 * 29);
}
