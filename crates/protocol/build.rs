//! Generates the messages and the ttrpc services from `proto/*.proto`.

use std::{env, fs, path::PathBuf};

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

fn main() {
    generate("agent");
    generate("monitor");
}

fn generate(name: &str) {
    let proto = format!("proto/{name}.proto");
    println!("cargo:rerun-if-changed={proto}");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join(name);
    fs::create_dir_all(&out).expect("OUT_DIR is writable");
    Codegen::new()
        .input(&proto)
        .include("proto")
        .out_dir(&out)
        .customize(Customize {
            async_all: true,
            ..Default::default()
        })
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(true))
        .run()
        .unwrap_or_else(|error| panic!("{proto}: {error}"));
    // The ttrpc half has no mod line of its own.
    let index = out.join("mod.rs");
    let mut lines = fs::read_to_string(&index).expect("the generator wrote mod.rs");
    let service = format!("pub mod {name}_ttrpc;");
    if !lines.contains(&service) {
        lines.push_str(&format!("\n{service}\n"));
        fs::write(&index, lines).expect("OUT_DIR is writable");
    }
}
