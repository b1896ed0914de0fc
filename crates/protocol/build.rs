//! Generates the messages and the ttrpc service from `proto/agent.proto`.

use std::{env, fs, path::PathBuf};

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

fn main() {
    println!("cargo:rerun-if-changed=proto/agent.proto");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("agent");
    fs::create_dir_all(&out).expect("OUT_DIR is writable");
    Codegen::new()
        .input("proto/agent.proto")
        .include("proto")
        .out_dir(&out)
        .customize(Customize {
            async_all: true,
            ..Default::default()
        })
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(true))
        .run()
        .expect("proto/agent.proto is well formed");
    // The ttrpc half has no mod line of its own.
    let index = out.join("mod.rs");
    let mut lines = fs::read_to_string(&index).expect("the generator wrote mod.rs");
    if !lines.contains("agent_ttrpc") {
        lines.push_str("\npub mod agent_ttrpc;\n");
        fs::write(&index, lines).expect("OUT_DIR is writable");
    }
}
