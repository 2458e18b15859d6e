cat > "$folder/containerd.toml" <<TOML
version = 2
root = "/run/containerd-root"
state = "/run/containerd-state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
address = "/run/containerd.sock"
TOML
containerd --config "$folder/containerd.toml" > "$folder/containerd.log" 2>&1 &
tries=0
until [ -S /run/containerd.sock ]; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || { tail "$folder/containerd.log"; exit 1; }
    sleep 0.1
done
run() {
    name=$1
    shift
    ctr --address /run/containerd.sock run --cni --cgroup "$cgroup/$name" --rootfs "$@"
}
run web --detach "$rootfs" web /bin/busybox httpd -f -p 80 -h /www
state "one runs"
fetch 10.244.1.2
run client --rm "$rootfs" client /bin/busybox timeout 5 /bin/busybox wget -q -O - http://10.244.1.2/
run client --rm "$rootfs" client /bin/busybox ip address show eth0
state "others have come and gone"
ctr --address /run/containerd.sock task kill --signal KILL web
