use std::time::Duration;

use super::{Protocol, Socket, flags, push_message};
use crate::test_support::in_new_netns;

const WAIT: Option<Duration> = Some(Duration::from_secs(5));

/// RTM_NEWLINK of a bridge called `name`: `ifinfomsg`, IFLA_IFNAME, IFLA_LINKINFO { INFO_KIND }.
fn new_bridge(name: &str) -> Vec<u8> {
    let mut payload = vec![0; 16];
    super::push_attribute(&mut payload, libc::IFLA_IFNAME, format!("{name}\0").as_bytes());
    let mut info = Vec::new();
    super::push_attribute(&mut info, libc::IFLA_INFO_KIND, b"bridge\0");
    super::push_attribute(&mut payload, libc::IFLA_LINKINFO, &info);
    payload
}

#[test]
fn a_batch_reports_each_message_by_its_number() {
    in_new_netns(|| {
        let mut socket = Socket::open(Protocol::Route).unwrap();
        let create = flags::REQUEST | flags::CREATE | flags::EXCLUSIVE;
        let mut batch = Vec::new();
        let numbers = [(); 3].map(|()| socket.next_sequence());
        push_message(&mut batch, libc::RTM_NEWLINK, create | flags::ACK, numbers[0], &new_bridge("one"));
        push_message(&mut batch, libc::RTM_NEWLINK, create, numbers[1], &new_bridge("one"));
        push_message(&mut batch, libc::RTM_NEWLINK, create | flags::ACK, numbers[2], &new_bridge("two"));
        let answer = socket.batch(&batch, format_args!("create bridges")).unwrap();
        assert_eq!(answer.acknowledged, [numbers[0], numbers[2]]);
        assert_eq!(answer.refused.len(), 1);
        assert_eq!((answer.refused[0].sequence, answer.refused[0].errno), (numbers[1], libc::EEXIST));
        let error = answer.into_result(format_args!("create bridges")).unwrap_err();
        assert!(error.already_exists());
        assert!(error.to_string().starts_with("cannot create bridges: File exists"), "{error}");
    });
}

#[test]
fn a_batch_larger_than_the_usual_send_buffer_passes() {
    in_new_netns(|| {
        let mut socket = Socket::open(Protocol::Route).unwrap();
        let mut batch = Vec::new();
        for _ in 0..40_000 {
            let sequence = socket.next_sequence();
            push_message(&mut batch, libc::RTM_GETLINK, 0, sequence, &[0; 16]);
        }
        let last = socket.next_sequence();
        push_message(
            &mut batch,
            libc::RTM_NEWLINK,
            flags::REQUEST | flags::ACK | flags::CREATE,
            last,
            &new_bridge("br"),
        );
        assert!(batch.len() > 1 << 20);
        assert_eq!(socket.batch(&batch, format_args!("send much")).unwrap().acknowledged, [last]);
    });
}

#[test]
fn notifications_arrive_and_nothing_is_waited_for_in_vain() {
    in_new_netns(|| {
        let mut watcher = Socket::open(Protocol::Route).unwrap();
        watcher.join(libc::RTNLGRP_LINK).unwrap();
        let nothing = watcher.receive(Some(Duration::ZERO), format_args!("watch links")).unwrap();
        assert!(nothing.is_empty());
        let mut socket = Socket::open(Protocol::Route).unwrap();
        socket.request(libc::RTM_NEWLINK, flags::CREATE, &new_bridge("br"), format_args!("create br")).unwrap();
        let seen = watcher.receive(WAIT, format_args!("watch links")).unwrap();
        assert_eq!(seen.first().unwrap().kind, libc::RTM_NEWLINK);
    });
}

#[test]
fn the_offending_attribute_is_pointed_at() {
    in_new_netns(|| {
        let mut socket = Socket::open(Protocol::Route).unwrap();
        let mut payload = vec![0; 16];
        super::push_attribute(&mut payload, libc::IFLA_MTU, &[1]);
        let mut batch = Vec::new();
        let sequence = socket.next_sequence();
        push_message(&mut batch, libc::RTM_SETLINK, flags::REQUEST, sequence, &payload);
        let answer = socket.batch(&batch, format_args!("set an MTU of one byte")).unwrap();
        assert_eq!(answer.refused[0].offset, Some(32));
        assert_eq!(answer.refused[0].message.as_deref(), Some("Attribute failed policy validation"));
    });
}
