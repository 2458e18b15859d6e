cat > "$folder/containers.conf" <<TOML
[network]
network_backend = "cni"
cni_plugin_dirs = ["/opt/cni/bin"]
network_config_dir = "/etc/cni/net.d"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
TOML
export CONTAINERS_CONF="$folder/containers.conf"
podman() {
    command podman --root /run/podman-root --runroot /run/podman-run --storage-driver vfs --log-level error "$@"
}
podman run --detach --name web --cgroup-parent "/$cgroup" --stop-signal KILL --publish 8080:80 --publish 5353:53/udp \
    --rootfs "$rootfs" /bin/busybox httpd -f -p 80 -h /www > "$folder/id"
state "one runs"
fetch 127.0.0.1:8080
podman run --rm --cgroup-parent "/$cgroup" --rootfs "$rootfs" /bin/busybox timeout 5 /bin/busybox wget -q -O - http://10.88.0.1:8080/
state "another has come and gone"
podman rm --force web > /dev/null
state "none is left"
