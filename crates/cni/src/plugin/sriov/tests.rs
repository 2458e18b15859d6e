use podwire_kernel::route::{Mac, VfChange, VfLinkState, VfRate, VfVlan, VirtualFunction, VlanProtocol};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    config::{Config, Settings},
    function::first_free,
    store::{Given, Original, Store},
};
use crate::{
    Error, Verb,
    test_support::{Folder, call},
};

fn config(fields: &Value) -> crate::Result<Config> {
    let mut config = json!({"cniVersion": "1.1.0", "name": "net", "type": "sriov"});
    config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    Config::of(&call(Verb::Add, "box", &config)?)
}

#[test]
fn the_fields_of_sriov_cni_are_read() {
    let read = config(&json!({
        "deviceID": "0000:03:02.0", "mac": "CA:FE:C0:FF:EE:00", "vlan": 1000, "vlanQoS": 4, "vlanProto": "802.1AD",
        "min_tx_rate": 100, "max_tx_rate": 200, "spoofchk": "off", "trust": "on", "link_state": "enable",
        "logLevel": "debug", "runtimeConfig": {"mac": "CA:FE:C0:FF:EE:02", "deviceID": "0000:03:02.1"},
    }))
    .unwrap();
    assert_eq!(read.device_id.as_deref(), Some("0000:03:02.1"));
    let expected = Settings {
        mac: Some(Mac([0xca, 0xfe, 0xc0, 0xff, 0xee, 2])),
        vlan: Some(VfVlan { id: 1000, qos: 4, protocol: VlanProtocol::Ad }),
        rate: Some(VfRate { min: 100, max: 200 }),
        spoof_check: Some(false),
        trust: Some(true),
        link_state: Some(VfLinkState::Enable),
    };
    assert_eq!(read.settings, expected);
    assert_eq!(config(&json!({})).unwrap().settings, Settings::default());
}

#[test]
fn a_broken_function_does_not_stand_before_others() {
    let all = ["0000:03:02.0", "0000:03:02.1", "0000:03:02.2"];
    let broken = |address: &str| Err(Error::Config(format!("{address} is on fire")));
    let choose = |free: &dyn Fn(&str) -> crate::Result<Option<u32>>| first_free("eth0", all.into_iter(), free);
    let third = |address: &str| if address.ends_with('2') { Ok(Some(7)) } else { broken(address) };
    assert_eq!(choose(&third).unwrap(), 7);
    let error = choose(&|address| if address.ends_with('0') { Ok(None) } else { broken(address) }).unwrap_err();
    let why = "none of the 3 virtual functions of eth0 is free; 0000:03:02.1: network configuration: 0000:03:02.1 is on fire; \
               0000:03:02.2: network configuration: 0000:03:02.2 is on fire";
    assert_eq!((error.code(), error.to_string().as_str()), (102, why));
}

#[test]
fn what_makes_no_sense_is_named() {
    for (fields, field) in [
        (json!({"vlan": 4095}), "\"vlan\" is 4095"),
        (json!({"vlan": 5, "vlanQoS": 8}), "\"vlanQoS\" is 8"),
        (json!({"vlanQoS": 1}), "\"vlanQoS\" without \"vlan\""),
        (json!({"vlanProto": "802.1q"}), "\"vlanProto\" without \"vlan\""),
        (json!({"vlan": 0, "vlanQoS": 1}), "\"vlanQoS\" without a VLAN"),
        (json!({"vlan": 0, "vlanProto": "802.1ad"}), "\"vlanProto\" without a VLAN"),
        (json!({"vlan": 5, "vlanProto": "q"}), "\"vlanProto\" is \"q\""),
        (json!({"spoofchk": "yes"}), "\"spoofchk\" is \"yes\""),
        (json!({"trust": "no"}), "\"trust\" is \"no\""),
        (json!({"link_state": "up"}), "\"link_state\" is \"up\""),
        (json!({"min_tx_rate": 2, "max_tx_rate": 1}), "\"min_tx_rate\" is 2"),
        (json!({"mac": "02:00"}), "not a MAC address"),
    ] {
        let error = config(&fields).unwrap_err();
        assert_eq!(error.code(), 7, "{error}");
        assert!(error.to_string().contains(field), "{error}");
    }
}

fn function() -> impl Strategy<Value = VirtualFunction> {
    let vlan = (0_u16..4095, 0_u8..8, any::<bool>()).prop_map(|(id, qos, outer)| VfVlan {
        id,
        qos,
        protocol: if outer { VlanProtocol::Ad } else { VlanProtocol::Q },
    });
    let states = vec![VfLinkState::Auto, VfLinkState::Enable, VfLinkState::Disable];
    let rate = (any::<u32>(), any::<u32>()).prop_map(|(min, max)| VfRate { min, max });
    (any::<[u8; 6]>(), vlan, rate, any::<bool>(), any::<bool>(), prop::sample::select(states)).prop_map(
        |(mac, vlan, rate, spoof, trust, link_state)| VirtualFunction {
            id: 3,
            mac: Mac(mac),
            vlan,
            rate,
            spoof_check: Some(spoof),
            trust: Some(trust),
            link_state,
        },
    )
}

fn apply(function: &mut VirtualFunction, change: VfChange) {
    match change {
        VfChange::Mac(mac) => function.mac = mac,
        VfChange::Vlan(vlan) => function.vlan = vlan,
        VfChange::Rate(rate) => function.rate = rate,
        VfChange::SpoofCheck(on) => function.spoof_check = Some(on),
        VfChange::Trust(on) => function.trust = Some(on),
        VfChange::LinkState(state) => function.link_state = state,
    }
}

proptest! {
    /// Whatever a container's time with a function has made of it, what was written down brings it back, and nothing is
    /// changed that is right.
    #[test]
    fn a_function_is_given_back_as_it_was(before in function(), after in function()) {
        let original = Original::of(&before, Some(("eth1", Some(before.mac), 1500)));
        let kept: Original = serde_json::from_value(json!(original)).unwrap();
        let mut now = after;
        for change in Settings::all_of(&kept.function(&now)).changes(&now) {
            apply(&mut now, change);
        }
        prop_assert_eq!(now, before);
        prop_assert_eq!(Settings::all_of(&kept.function(&now)).changes(&now), []);
    }
}

#[test]
fn what_sriov_cni_wrote_is_read() {
    let folder = Folder::new();
    let written = r#"{"OrigVfState":{"HostIFName":"ens1f0v0","SpoofChk":true,"Trust":false,"AdminMAC":"00:00:00:00:00:00",
        "EffectiveMAC":"0e:e5:c1:a7:5c:35","Vlan":0,"VlanQoS":0,"VlanProto":33024,"MinTxRate":0,"MaxTxRate":0,"LinkState":0,
        "MTU":1500},"Master":"ens1f0","MAC":"","MTU":1500,"vlan":42,"vlanQoS":null,"deviceID":"0000:03:02.0","VFID":1,
        "name":"net","type":"sriov","cniVersion":"0.3.1","ipam":{}}"#;
    std::fs::write(folder.path().join("box-net1"), written).unwrap();
    std::fs::write(folder.path().join("box-net2"), "broken").unwrap();
    let store = Store::new(folder.path().to_owned());
    let given = store.of_attachment("box", "net1").unwrap().unwrap();
    assert_eq!(
        (given.device_id.as_str(), given.id, given.original.interface.as_str()),
        ("0000:03:02.0", 1, "ens1f0v0")
    );
    assert!(given.belongs_to("box", "net1") && !given.belongs_to("box", "net2"));
    assert_eq!(store.all(), std::slice::from_ref(&given));
    assert_eq!(store.of_attachment("box", "net2").unwrap_err().code(), 6);
    assert_eq!(store.of_attachment("box", "net3").unwrap(), None);
}

#[test]
fn what_is_written_is_known_until_it_is_forgotten() {
    let folder = Folder::new();
    let store = Store::new(folder.path().join("sriov"));
    let config = json!({"cniVersion": "1.1.0", "name": "net", "type": "sriov", "vlan": 42});
    let call = call(Verb::Add, "box", &config).unwrap();
    let function = VirtualFunction {
        id: 0,
        mac: Mac([0; 6]),
        vlan: VfVlan::default(),
        rate: VfRate::default(),
        spoof_check: None,
        trust: Some(false),
        link_state: VfLinkState::Auto,
    };
    assert!(store.all().is_empty());
    let given = Given::new(&call, "0000:03:02.0", "ens1f0", 0, Original::of(&function, None));
    store.write(&call, &given).unwrap();
    assert_eq!(store.of_attachment("box", "eth0").unwrap().as_ref(), Some(&given));
    assert_eq!(store.owner("0000:03:02.0").unwrap().as_deref(), Some("/nonexistent".as_ref()));
    assert!(store.has(&given).unwrap());
    let text = std::fs::read_to_string(folder.path().join("sriov/box-eth0")).unwrap();
    let text: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&text["vlan"], &text["Master"], &text["OrigVfState"]["LinkState"]),
        (&json!(42), &json!("ens1f0"), &json!(0))
    );
    store.forget(&given).unwrap();
    store.forget(&given).unwrap();
    assert_eq!((store.has(&given).unwrap(), store.owner("0000:03:02.0").unwrap()), (false, None));
}
