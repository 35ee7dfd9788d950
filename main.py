from vit_ssl_jax.main import run

if __name__ == "__main__":
  run()
