# The first process of the container: serve /www until it is told to stop.
port=${PORT:-8080}
# httpd goes to the background once it listens, so the line below is true when it appears.
/bin/busybox httpd -p "$port" -h /www || exit 1
echo "hello: ready on port $port"
trap 'exit 0' TERM INT
/bin/busybox sleep infinity &
wait
