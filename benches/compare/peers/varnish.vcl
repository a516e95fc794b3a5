# Varnish as a pull-through cache: everything is cached by its path, bodies stream while they are fetched.
# {…} is filled in by the benchmark.
vcl 4.1;

backend origin {
    .host = "{origin_host}";
    .port = "{origin_port}";
    .first_byte_timeout = 600s;
    .between_bytes_timeout = 600s;
}

sub vcl_recv {
    if (req.method == "GET" || req.method == "HEAD") {
        return (hash);
    }
    return (pass);
}

sub vcl_backend_response {
    set beresp.ttl = 24h;
    set beresp.do_stream = true;
    return (deliver);
}
