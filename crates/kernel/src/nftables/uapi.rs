//! Numbers of `linux/netfilter/nf_tables.h` that encoding and decoding share.

/// `NFNL_SUBSYS_NFTABLES`.
pub const SUBSYSTEM: u16 = 10;
/// `NLA_F_NESTED`.
pub const NESTED: u16 = 0x8000;

/// Message types (`NFT_MSG_*`, `NFNL_MSG_BATCH_*`).
pub mod msg {
    pub const BATCH_BEGIN: u16 = 16;
    pub const BATCH_END: u16 = 17;
    pub const NEW_TABLE: u16 = 0;
    pub const GET_TABLE: u16 = 1;
    pub const DEL_TABLE: u16 = 2;
    pub const NEW_CHAIN: u16 = 3;
    pub const GET_CHAIN: u16 = 4;
    pub const DEL_CHAIN: u16 = 5;
    pub const NEW_RULE: u16 = 6;
    pub const GET_RULE: u16 = 7;
    pub const DEL_RULE: u16 = 8;
    pub const NEW_SET: u16 = 9;
    pub const GET_SET: u16 = 10;
    pub const DEL_SET: u16 = 11;
    pub const NEW_ELEM: u16 = 12;
    pub const GET_ELEM: u16 = 13;
    pub const DEL_ELEM: u16 = 14;
    pub const NEW_GENERATION: u16 = 15;
    pub const GET_GENERATION: u16 = 16;
}

/// `NFNLGRP_NFTABLES`.
pub const GROUP: u32 = 7;
/// `NFTA_GEN_ID`.
pub const GENERATION_ID: u16 = 1;

/// `NFTA_LIST_ELEM`.
pub const LIST_ELEM: u16 = 1;

pub mod table {
    pub const NAME: u16 = 1;
    pub const USERDATA: u16 = 6;
}

pub mod chain {
    pub const TABLE: u16 = 1;
    pub const NAME: u16 = 3;
    pub const HOOK: u16 = 4;
    pub const POLICY: u16 = 5;
    pub const TYPE: u16 = 7;
    pub const HOOK_NUM: u16 = 1;
    pub const HOOK_PRIORITY: u16 = 2;
}

pub mod rule {
    pub const TABLE: u16 = 1;
    pub const CHAIN: u16 = 2;
    pub const HANDLE: u16 = 3;
    pub const EXPRESSIONS: u16 = 4;
    pub const USERDATA: u16 = 7;
}

pub mod set {
    pub const TABLE: u16 = 1;
    pub const NAME: u16 = 2;
    pub const FLAGS: u16 = 3;
    pub const KEY_TYPE: u16 = 4;
    pub const KEY_LEN: u16 = 5;
    pub const DATA_TYPE: u16 = 6;
    pub const DATA_LEN: u16 = 7;
    pub const DESC: u16 = 9;
    pub const ID: u16 = 10;
    pub const USERDATA: u16 = 13;
    pub const COUNT: u16 = 20;
    pub const DESC_SIZE: u16 = 1;
    pub const DESC_CONCAT: u16 = 2;
    pub const FIELD_LEN: u16 = 1;
    pub const FLAG_INTERVAL: u32 = 0x4;
    pub const FLAG_MAP: u32 = 0x8;
    pub const FLAG_TIMEOUT: u32 = 0x10;
    pub const FLAG_EVAL: u32 = 0x20;
    pub const FLAG_CONCAT: u32 = 0x80;
    pub const DATA_VERDICT: u32 = 0xffff_ff00;
}

pub mod elem {
    pub const LIST_TABLE: u16 = 1;
    pub const LIST_SET: u16 = 2;
    pub const LIST_ELEMENTS: u16 = 3;
    pub const KEY: u16 = 1;
    pub const DATA: u16 = 2;
    pub const USERDATA: u16 = 6;
    pub const KEY_END: u16 = 10;
}

pub mod data {
    pub const VALUE: u16 = 1;
    pub const VERDICT: u16 = 2;
    pub const VERDICT_CODE: u16 = 1;
    pub const VERDICT_CHAIN: u16 = 2;
}

pub mod expr {
    pub const NAME: u16 = 1;
    pub const DATA: u16 = 2;
}

/// Type-length-value records that the `nft` tool keeps in user data (libnftnl `udata.h`).
pub mod udata {
    /// Comment of a table, chain, rule or element.
    pub const COMMENT: u8 = 0;
    pub const SET_KEY_BYTEORDER: u8 = 0;
    pub const SET_DATA_BYTEORDER: u8 = 1;
    pub const SET_COMMENT: u8 = 7;
    /// The tool's `enum byteorder`.
    pub const HOST_ENDIAN: u32 = 1;
    pub const BIG_ENDIAN: u32 = 2;
    /// The longest comment, without its closing zero.
    pub const MAX_COMMENT: usize = 127;
}
